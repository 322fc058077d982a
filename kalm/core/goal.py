"""Goals own their rules: one definition of success and reward for simulator, imagination and evaluation.

Shape: ... any batch shape; what stands behind it is one observation or one action of the world.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.floating[Any]]


class Goal(ABC):
    """What must become true, and the rules that say whether it is: pure, batched functions of arrays.

    Subclass it as a frozen dataclass, so that goals are hashable, comparable and plain JSON.

    Attributes:
        task: Short name of the task it belongs to; success is averaged a task, then over tasks (macro).
        max_steps: Steps after which an episode is truncated.
    """

    if TYPE_CHECKING:  # read-only, so that a field, a class attribute or a property will do

        @property
        def task(self) -> str: ...  # noqa: D102

        @property
        def max_steps(self) -> int: ...  # noqa: D102

    @abstractmethod
    def success(
        self, observation: Array, previous_observation: Array | None = None, action: Array | None = None
    ) -> BoolArray:
        """Whether the goal is true after a step.

        Args:
            observation: After the step, shape (..., O).
            previous_observation: Before the step, same shape; None right after a reset.
            action: Action of the step, shape (...) or (..., A); None right after a reset or when unknown.

        Returns:
            Verdicts, shape (...).
        """

    def reward(self, observation: Array, action: Array, next_observation: Array) -> FloatArray:
        """What a step is worth, success included, shape (...): 1 on success and else 0, unless a goal says otherwise.

        The shapes are those of ``success``: (..., O), (...) or (..., A), and (..., O).
        """
        return np.asarray(self.success(next_observation, observation, action), dtype=np.float64)

    def distance(self, observation: Array) -> FloatArray | None:
        """How far the goal is from being met, shape (...), in a unit of its task; None where a goal cannot tell.

        It tells a start from which much is to be done from one that is nearly there, so that rollouts can be compared
        with those that had as far to go.
        """
        return None

    @abstractmethod
    def explained_by(self, text: str) -> bool:
        """Whether a text describes this goal, by its key words (KALM, figure 7)."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types from which the domain's ``goal_from_json`` rebuilds an equal goal; by default the fields."""
        return dict(vars(self))


@dataclass(frozen=True)
class InstructedGoal:
    """One instruction: a goal, one sentence that asks for it, and the split the sentence belongs to."""

    goal: Goal
    instruction: str
    goal_split: str

    def to_json(self) -> dict[str, Any]:
        """The JSON-lines form that users write too."""
        return {"goal": self.goal.to_json(), "instruction": self.instruction, "goal_split": self.goal_split}


def success_of_each(goals: Sequence[Goal], observation: Array, previous_observation: Array, action: Array) -> BoolArray:
    """Judge B steps that belong to B goals, as ``Goal.success`` does: one batched call for each distinct goal."""
    verdict = np.zeros(len(goals), dtype=np.bool_)
    for goal, rows in _rows_of_each(goals).items():
        verdict[rows] = goal.success(observation[rows], previous_observation[rows], action[rows])
    return verdict


def reward_of_each(goals: Sequence[Goal], observation: Array, action: Array, next_observation: Array) -> FloatArray:
    """Reward B steps that belong to B goals, as ``Goal.reward`` does: one batched call for each distinct goal."""
    reward = np.zeros(len(goals))
    for goal, rows in _rows_of_each(goals).items():
        reward[rows] = goal.reward(observation[rows], action[rows], next_observation[rows])
    return reward


def _rows_of_each(goals: Sequence[Goal]) -> dict[Goal, list[int]]:
    rows_of: dict[Goal, list[int]] = {}
    for row, goal in enumerate(goals):
        rows_of.setdefault(goal, []).append(row)
    return rows_of
