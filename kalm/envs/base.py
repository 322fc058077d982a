"""The Domain contract: everything that KALM needs to know about a world, and nothing about learning.

A domain is a registered Gymnasium environment, goals in named splits with their instructions, and pure batched
functions of arrays that say when a goal is met, what a step is worth and which steps are implausible. The
environment, imagination and evaluation all call those same functions, so each rule has one definition.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.core.specs import TaskSpec, spec_of_spaces
from kalm.envs.symmetry import Relabelling

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.floating[Any]]


class Goal(Protocol):
    """What must become true. Goals are frozen dataclasses: hashable, comparable, JSON-serialisable."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types from which ``Domain.goal_from_json`` rebuilds an equal goal."""


@dataclass(frozen=True)
class InstructedGoal:
    """One instruction: a goal, one sentence that asks for it, and the split the sentence belongs to."""

    goal: Goal
    instruction: str
    goal_split: str

    def to_json(self) -> dict[str, Any]:
        """The JSON-lines form that users write too."""
        return {"goal": self.goal.to_json(), "instruction": self.instruction, "goal_split": self.goal_split}


class Domain(ABC):
    """A world as KALM sees it. Subclass it in one package under ``kalm/envs/`` to add a world.

    Attributes:
        name: Folder name under ``checkpoints/`` and ``conf/``, for example ``clevr_robot``.
        env_id: Registered Gymnasium id, for example ``kalm/ClevrRobot-v0``.
        goal_splits: Names of the splits that policies are evaluated on, in the order of tables. The first is the one
            that real rollouts are collected for; how new the others are to a learner is the domain's to say.
        observation_space: Flat box of shape (O,).
        action_space: ``Discrete(A)``, or a box of shape (A,).
        plausibility_flags: Names of the ways in which a transition can be implausible.
        terminal_reward: Reward that the last transition of a successful stored rollout gets in place of its own; None
            where ``reward`` itself pays for success, so that stored and simulated rewards are the same.
    """

    name: ClassVar[str]
    env_id: ClassVar[str]
    goal_splits: ClassVar[tuple[str, ...]]
    observation_space: gym.spaces.Box
    action_space: gym.spaces.Discrete | gym.spaces.Box
    plausibility_flags: ClassVar[tuple[str, ...]]
    terminal_reward: ClassVar[float | None]

    # --- goals ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:
        """Every built-in instruction of a split, always in the same order."""

    @abstractmethod
    def goal_from_json(self, data: Mapping[str, Any]) -> Goal:
        """Rebuild a goal from its ``to_json`` form.

        Raises:
            DataError: If ``data`` describes no goal of this domain; the message names the field and what is allowed.
        """

    @abstractmethod
    def task(self, goal: Goal) -> str:
        """Short name of the task that a goal belongs to; success is averaged a task, then over tasks (macro)."""

    @abstractmethod
    def max_steps(self, goal: Goal) -> int:
        """Steps after which an episode for ``goal`` is truncated."""

    @abstractmethod
    def explains(self, goal: Goal, text: str) -> bool:
        """Whether ``text`` describes ``goal``, by its key words (KALM, figure 7)."""

    # --- rules: pure, batched functions of arrays -------------------------------------------------------------------

    @abstractmethod
    def success(
        self,
        goal: Goal,
        observation: FloatArray,
        previous_observation: FloatArray | None = None,
        action: NDArray[Any] | None = None,
    ) -> BoolArray:
        """Whether ``goal`` is true after a step.

        Args:
            goal: The goal to judge.
            observation: Observation after the step, shape (..., O).
            previous_observation: Observation before the step, same shape; None right after a reset.
            action: Action of the step, shape (...) or (..., A); None right after a reset or when unknown.

        Returns:
            Verdicts, shape (...).
        """

    @abstractmethod
    def reward(
        self, goal: Goal, observation: FloatArray, action: NDArray[Any], next_observation: FloatArray
    ) -> FloatArray:
        """The environment's own reward of each step, shape (...), before ``terminal_reward``."""

    @abstractmethod
    def plausibility(
        self, observation: FloatArray, action: NDArray[Any], next_observation: FloatArray
    ) -> dict[str, BoolArray]:
        """One flag a transition for each of ``plausibility_flags``, shape (...); True marks a violation."""

    def next_sub_goal(self, goal: Goal, observation: FloatArray) -> Goal | None:
        """Which part of ``goal`` to pursue next, a goal of the splits train or easy; None unless a domain names parts.

        Args:
            goal: The whole goal.
            observation: Where things stand, shape (O,).

        Returns:
            None as well where all parts hold.
        """
        return None

    def first_observation(self, goal: Goal, rng: np.random.Generator) -> FloatArray | None:
        """A real observation to imagine ``goal`` from, shape (O,), where it matters what the goal is.

        Args:
            goal: What is to be imagined.
            rng: Source of chance.

        Returns:
            None where every first observation of the data will do, as in a world that looks the same for all goals.
        """
        return None

    # --- the simulator ----------------------------------------------------------------------------------------------

    @abstractmethod
    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> gym.vector.VectorEnv:
        """A vectorised environment with ``AutoresetMode.DISABLED`` that uses all cores by default.

        ``reset(seed=[...], options={"goals": [...], "instructions": [...], "reset_mask": ...})`` starts episode i from
        ``seed[i]`` alone, so that an episode depends neither on the number of environments nor on its place among them.
        """

    @abstractmethod
    def collect(self, num_rollouts: int, seed: int, first: int = 0) -> Iterator[Rollout]:
        """Real rollouts of the expert under the training goals.

        Args:
            num_rollouts: Rollouts of the whole collection.
            seed: With a rollout's number it decides everything about that rollout.
            first: Number of the rollout to begin with, so that an interrupted collection goes on.

        Yields:
            Rollouts ``first`` to ``num_rollouts - 1``, in order.
        """

    @property
    def collection_settings(self) -> dict[str, Any]:
        """What else decides how ``collect`` collects, as plain JSON types; kept with the store."""
        return {}

    @property
    def relabellings(self) -> Sequence[Relabelling]:
        """Exchanges of names under which rollouts stay true: the simulator makes the relabelled ones too."""
        return ()

    @property
    def mirror_images(self) -> Sequence[Relabelling]:
        """How the world looks as it is and in mirrors, where the same laws hold; none unless a domain has some.

        What stands in a mirror world, such as a window that slides the other way, need not exist in the simulator.
        """
        return ()

    @property
    def entities(self) -> Sequence[slice]:
        """Where in an observation the numbers of each thing lie that a scene may lack; they are then all zero."""
        return ()

    @abstractmethod
    def draw(self, observation: FloatArray, instruction: str = "", size: int = 256) -> NDArray[np.uint8]:
        """Picture of one observation, shape (size, size, 3), drawn without GL."""

    # --- shared by all domains --------------------------------------------------------------------------------------

    @property
    def spec(self) -> TaskSpec:
        """What observations and actions are, for what knows no goals."""
        return spec_of_spaces(self.observation_space, self.action_space, self.entities)

    @property
    def training_split(self) -> str:
        """The split that real rollouts are collected for."""
        return self.goal_splits[0]

    def check_goal_splits(self, goal_splits: Sequence[str] | None) -> list[str]:
        """Names of splits that this domain has; all of them for None.

        Raises:
            DataError: If a name is unknown or none is given; the message lists the known ones.
        """
        chosen = list(self.goal_splits if goal_splits is None else goal_splits)
        unknown = [split for split in chosen if split not in self.goal_splits]
        if unknown or not chosen:
            raise DataError(
                f"goal_splits: {', '.join(map(repr, unknown)) or 'none named'}; the splits are "
                f"{', '.join(self.goal_splits)}"
            )
        return chosen

    def label_rollout(
        self,
        instructed: InstructedGoal,
        observations: FloatArray,
        actions: NDArray[Any],
        source: Source,
        provenance: Mapping[str, Any] | None = None,
    ) -> Rollout:
        """Turn observations and actions into a rollout with the domain's own rewards and verdicts.

        The rollout is cut after the first step at which the goal holds; that step is ``terminated`` and earns
        ``terminal_reward``, if there is one. A rollout that never meets its goal is ``truncated`` at its last step.

        Args:
            instructed: Goal and sentence the rollout was made for.
            observations: Shape (T + 1, O).
            actions: Shape (T,) or (T, A).
            source: Real or imaginary.
            provenance: Plain JSON types that say how the rollout was made.
        """
        goal = instructed.goal
        before, after = observations[:-1], observations[1:]
        success = self.success(goal, after, before, actions)
        is_success = bool(success.any())
        num_steps = int(success.argmax()) + 1 if is_success else len(actions)
        before, actions, after = before[:num_steps], actions[:num_steps], after[:num_steps]
        flags = self.plausibility(before, actions, after)
        rewards = self.reward(goal, before, actions, after).astype(np.float32)
        terminated = np.zeros(num_steps, dtype=np.bool_)
        truncated = np.zeros(num_steps, dtype=np.bool_)
        if is_success:
            if self.terminal_reward is not None:
                rewards[-1] = self.terminal_reward
            terminated[-1] = True
        elif num_steps:
            truncated[-1] = True
        return Rollout(
            goal=goal.to_json(),
            instruction=instructed.instruction,
            goal_split=instructed.goal_split,
            source=source,
            observations=observations[: num_steps + 1],
            actions=actions,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            is_success=is_success,
            violations={flag: int(marked.sum()) for flag, marked in flags.items()},
            provenance=dict(provenance or {}),
        )

    def load_instructed_goals(self, path: str | Path) -> list[InstructedGoal]:
        """Read a user's goals: JSON lines of ``{"goal": {...}, "instruction": "...", "goal_split": "rephrase"}``.

        Raises:
            DataError: If the file is missing or any line is malformed; every bad line is named at once.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(
                f"goals file {path} does not exist; write one JSON object a line with goal, instruction, goal_split"
            )
        goals, problems = [], []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                goals.append(self._instructed_goal(json.loads(line)))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
        if problems:
            raise DataError(f"goals file {path} is malformed:\n  " + "\n  ".join(problems))
        if not goals:
            raise DataError(f"goals file {path} holds no goals; write one JSON object a line")
        return goals

    def _instructed_goal(self, data: Any) -> InstructedGoal:
        if not isinstance(data, dict) or not {"goal", "instruction", "goal_split"} <= set(data):
            raise DataError(f"{data!r} is not an object with the keys goal, instruction and goal_split")
        instruction = data["instruction"]
        if not isinstance(instruction, str) or not instruction.strip():
            raise DataError(f"instruction is {instruction!r}; it must be a sentence")
        (split,) = self.check_goal_splits([data["goal_split"]])
        return InstructedGoal(self.goal_from_json(data["goal"]), instruction, split)


def success_of_each(
    domain: Domain,
    goals: Sequence[Goal],
    observation: FloatArray,
    previous_observation: FloatArray,
    action: NDArray[Any],
) -> BoolArray:
    """Judge B steps that belong to B goals: one batched call for each distinct goal.

    Args:
        domain: Whose rule to apply.
        goals: One goal a step, length B.
        observation: Observation after the step, shape (B, O).
        previous_observation: Observation before the step, shape (B, O).
        action: Shape (B,) or (B, A).

    Returns:
        Verdicts, shape (B,).
    """
    verdict = np.zeros(len(goals), dtype=np.bool_)
    for goal, rows in _rows_of_each(goals).items():
        verdict[rows] = domain.success(goal, observation[rows], previous_observation[rows], action[rows])
    return verdict


def reward_of_each(
    domain: Domain,
    goals: Sequence[Goal],
    observation: FloatArray,
    action: NDArray[Any],
    next_observation: FloatArray,
) -> FloatArray:
    """Reward B steps that belong to B goals: one batched call for each distinct goal.

    Args:
        domain: Whose rule to apply.
        goals: One goal a step, length B.
        observation: Observation before the step, shape (B, O).
        action: Shape (B,) or (B, A).
        next_observation: Observation after the step, shape (B, O).

    Returns:
        Rewards, shape (B,), before ``terminal_reward``.
    """
    reward = np.zeros(len(goals))
    for goal, rows in _rows_of_each(goals).items():
        reward[rows] = domain.reward(goal, observation[rows], action[rows], next_observation[rows])
    return reward


def _rows_of_each(goals: Sequence[Goal]) -> dict[Goal, list[int]]:
    rows_of: dict[Goal, list[int]] = {}
    for row, goal in enumerate(goals):
        rows_of.setdefault(goal, []).append(row)
    return rows_of
