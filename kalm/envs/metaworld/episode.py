"""How an episode begins; the single and the vectorised environment share it, so that a seed means one thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.envs.base import Domain, Goal
from kalm.envs.metaworld.goals import TaskGoal, goal_of_task
from kalm.envs.metaworld.instructions import first_instructions, instructed_goals
from kalm.envs.metaworld.layout import ENTITIES, OBSERVATION_SIZE, pose_slice
from kalm.envs.metaworld.restoring import restore
from kalm.envs.metaworld.scene import SceneState
from kalm.envs.metaworld.scene_pool import borrowed_scene

MAX_LAYOUTS = 100  # the package lays a task out undone nearly always
# Where a random absent entity is shown: over the table, turned about the vertical axis.
_NOISE_LOW, _NOISE_HIGH = np.array([-0.4, 0.4, 0.0]), np.array([0.4, 0.9, 0.3])


@dataclass(frozen=True)
class Start:
    """The beginning of an episode.

    Attributes:
        goal: What to do.
        instruction: The sentence for it.
        state: The scene's state.
        observation: What is seen of it, shape (91,).
        noise: Added to every observation of the episode, shape (91,); zeros unless an absent entity is made up.
    """

    goal: TaskGoal
    instruction: str
    state: SceneState
    observation: NDArray[np.float64]
    noise: NDArray[np.float64]


def start_episode(
    domain: Domain,
    rng: np.random.Generator,
    task: str | None = None,
    goal: Goal | Mapping[str, Any] | None = None,
    instruction: str | None = None,
    observation: NDArray[Any] | None = None,
    absent_entity_noise: bool = False,
) -> Start:
    """Draw what the caller left open: a training instruction, and a layout in which its goal is not true yet.

    Args:
        domain: Whose rules.
        rng: Source of chance, fresh from the episode's seed.
        task: Name of a task, another way to say its goal.
        goal: A goal, its JSON form, or None.
        instruction: A sentence for the goal; by default the first built-in one.
        observation: Observation to start from as nearly as the scene allows, shape (91,), or None to draw a layout.
        absent_entity_noise: Whether to show one entity, which is not there, at a random place.

    Raises:
        ValueError: If a task and a goal are given, or anything given is unfit.
    """
    if task is not None and goal is not None:
        raise ValueError(f"reset got the task {task!r} and a goal; give one of them")
    if task is not None:
        chosen = goal_of_task(task)
    elif goal is None:
        training = instructed_goals("train")
        drawn = training[rng.integers(len(training))]
        chosen, instruction = _ours(drawn.goal), drawn.instruction if instruction is None else instruction
    else:
        chosen = _ours(domain.goal_from_json(goal) if isinstance(goal, Mapping) else goal)
    if instruction is None:
        instruction = first_instructions()[chosen]
    with borrowed_scene(chosen.task) as scene:
        if observation is not None:
            state, seen = restore(scene, check_observation(observation))
            return Start(chosen, instruction, state, seen, np.zeros(OBSERVATION_SIZE))
        for _ in range(MAX_LAYOUTS):
            state = scene.lay_out(rng)
            seen = scene.observe(state)
            if not domain.success(chosen, seen):
                noise = _made_up_entity(rng, chosen) if absent_entity_noise else np.zeros(OBSERVATION_SIZE)
                return Start(chosen, instruction, state, seen + noise, noise)
    raise ValueError(f"goal {chosen} was true in {MAX_LAYOUTS} random layouts; give an observation to start from")


def check_observation(observation: NDArray[Any]) -> NDArray[np.float64]:
    """An observation as a fresh array, shape (91,).

    Raises:
        ValueError: If the shape is another or a value is not finite.
    """
    checked = np.array(observation, dtype=np.float64)
    if checked.shape != (OBSERVATION_SIZE,):
        raise ValueError(f"observation has shape {checked.shape}; it must be ({OBSERVATION_SIZE},)")
    if not np.isfinite(checked).all():
        raise ValueError(f"observation has {np.count_nonzero(~np.isfinite(checked))} values that are not finite")
    return checked


def _made_up_entity(rng: np.random.Generator, goal: TaskGoal) -> NDArray[np.float64]:
    """The pose of one entity that is not in the scene, in its place among 91 zeros."""
    present = {entity.name for entity in goal.definition.entities}
    absent = [entity for entity in ENTITIES if entity not in present]
    noise = np.zeros(OBSERVATION_SIZE)
    half_turn = rng.uniform(-np.pi, np.pi) / 2.0
    pose = [*rng.uniform(_NOISE_LOW, _NOISE_HIGH), np.cos(half_turn), 0.0, 0.0, np.sin(half_turn)]
    noise[pose_slice(absent[rng.integers(len(absent))])] = pose
    return noise


def _ours(goal: Goal) -> TaskGoal:
    if not isinstance(goal, TaskGoal):
        raise TypeError(f"{goal!r} is a goal of another domain than metaworld")
    return goal
