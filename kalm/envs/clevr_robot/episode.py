"""How an episode begins; the single and the vectorised environment share it, so that a seed means one thing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.envs.base import Domain, Goal
from kalm.envs.clevr_robot.instructions import first_instructions
from kalm.envs.clevr_robot.layout import OBSERVATION_SIZE, sample_layout

MAX_LAYOUTS = 1000  # a built-in goal is already true in at most a few of a hundred layouts


def start_episode(
    domain: Domain,
    rng: np.random.Generator,
    goal: Goal | Mapping[str, Any] | None = None,
    instruction: str | None = None,
    observation: NDArray[Any] | None = None,
) -> tuple[Goal, str, NDArray[np.float64]]:
    """Draw what the caller left open: a training instruction, and a layout in which its goal is not true yet.

    Args:
        domain: Whose goals and rules.
        rng: Source of chance, fresh from the episode's seed.
        goal: A goal, its JSON form, or None to draw a training goal with its instruction.
        instruction: A sentence for the goal; by default the first built-in one, or an empty one for a user's goal.
        observation: Ball centres to start from, shape (10,), or None to draw them.

    Returns:
        The goal, its instruction, and the first observation, shape (10,).
    """
    if goal is None:
        drawn = domain.instructed_goals(domain.training_split)
        instructed = drawn[rng.integers(len(drawn))]
        goal, built_in = instructed.goal, instructed.instruction
    else:
        goal = domain.goal_from_json(goal) if isinstance(goal, Mapping) else goal
        built_in = first_instructions().get(goal, "")
    instruction = built_in if instruction is None else instruction
    if observation is not None:
        return goal, instruction, check_observation(observation)
    for _ in range(MAX_LAYOUTS):
        layout = sample_layout(rng)
        if not domain.success(goal, layout):
            return goal, instruction, layout
    raise ValueError(f"goal {goal} was true in {MAX_LAYOUTS} random layouts; give an observation to start from")


def check_observation(observation: NDArray[Any]) -> NDArray[np.float64]:
    """Ball centres as a fresh array, shape (10,).

    Raises:
        ValueError: If the shape is another or a value is not finite.
    """
    checked = np.array(observation, dtype=np.float64)
    if checked.shape != (OBSERVATION_SIZE,):
        raise ValueError(
            f"observation has shape {checked.shape}; it must be ({OBSERVATION_SIZE},), x and y of each ball"
        )
    if not np.isfinite(checked).all():
        raise ValueError(f"observation is {checked.tolist()}; all values must be finite")
    return checked
