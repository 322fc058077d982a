"""Who makes plans for a goal in a part: the interface of solvers and of hindsight, and what is asked of them.

Shape letters: S states of a part, A actions, T steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import require
from kalm.core.names import Source
from kalm.rl.planning.completion import MAX_CONFIGURATIONS
from kalm.rl.planning.empirical_graph import GRID, Part


@dataclass(frozen=True)
class PlanSettings:
    """How plans are made out of solutions.

    Attributes:
        num_plans: Starts for each goal in each part, drawn among the states from which the goal can be reached; all of
            them where there are fewer. Of hindsight: rollouts, out of all that were recorded.
        start_share: Share of them where an agent may set out at test time, as far as the data tell: in the
            configurations in which recorded rollouts begin; the others may be anywhere. Hindsight has no choice.
        max_length: Steps; longer plans are left out.
        is_completed: Whether the graph is completed by a local model of the dynamics that is learned from the store.
        max_configurations: Predicted for each part, at most, where the graph is completed.
        part_key: In the provenance of the recorded rollouts: equal values, equal part. Where it is absent, rollouts
            that share a state belong together.
        seed: Decides starts, and which of several best actions is taken.
    """

    num_plans: int = 8
    start_share: float = 0.5
    max_length: int = 500
    is_completed: bool = False
    max_configurations: int = MAX_CONFIGURATIONS
    part_key: str = GRID
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(self.num_plans >= 1, "num_plans", self.num_plans, "at least 1")
        require(0 <= self.start_share <= 1, "start_share", self.start_share, "in [0, 1]")
        require(self.max_configurations >= 0, "max_configurations", self.max_configurations, "at least 0")
        require(self.max_length >= 1, "max_length", self.max_length, "at least 1")
        require(self.seed >= 0, "seed", self.seed, "at least 0")


class Ways(NamedTuple):
    """Ways to a goal.

    Attributes:
        can_start: From which states one is known, bool, shape (S,).
        states: Of each way that was chosen, shape (T + 1,); the last one alone meets the goal.
        actions: Of each way that was chosen, shape (T,).
        optimal: Of each way that was chosen, the actions that are as good as the one taken, bool, shape (T, A).
    """

    can_start: NDArray[np.bool_]
    states: list[NDArray[np.int64]]
    actions: list[NDArray[np.int64]]
    optimal: list[NDArray[np.bool_]]


class Planner(ABC):
    """Makes plans for one goal in one part.

    Attributes:
        source: Where the steps of its plans come from: they were recorded, or thought up on the graph.
    """

    source: ClassVar[Source]

    @abstractmethod
    def plan(self, part: Part, is_goal: NDArray[np.bool_], settings: PlanSettings, rng: np.random.Generator) -> Ways:
        """Find ways to a goal.

        Args:
            part: What is known.
            is_goal: Which of its states meet the goal, shape (S,); not none.
            settings: How many plans, where they start and how long they may be.
            rng: Luck.
        """
