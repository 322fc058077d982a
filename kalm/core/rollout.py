"""One rollout in memory: what collection, imagination and import hand to the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.names import Source


@dataclass(frozen=True)
class Rollout:
    """T ordered transitions of one attempt, at one instruction or at nothing in particular.

    Attributes:
        goal: The goal in its JSON form, so that a rollout needs no domain to be read; empty if it was made for none.
        instruction: The sentence it was made for; empty without a goal.
        goal_split: Split of the instruction; empty without a goal.
        source: Real or imaginary.
        observations: As ``kalm.core.specs`` has them in memory: shape (T + 1, O) floats, or (T + 1, ...) integers of
            a grid, or (T + 1,) structured scalars of one with numbers, or (T + 1,) strings. The last row is the
            observation after the last action.
        actions: Shape (T,) integers, (T, A) floats, or (T,) strings.
        rewards: Shape (T,).
        terminated: Shape (T,); True where the task ended, which can only be the last step.
        truncated: Shape (T,); True where time or data ran out, which can only be the last step.
        is_success: Whether the goal was true after some step, by the domain's rule.
        violations: For each of the domain's plausibility flags, how many transitions it marks.
        provenance: Plain JSON types that say how the rollout was made (empty for real ones).
        optimal_actions: Bool, shape (T, A): all actions that a planner knows to be equally best at each step, the one
            that was taken among them. None where nobody knows.
    """

    goal: Mapping[str, Any]
    instruction: str
    goal_split: str
    source: Source
    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.floating[Any]]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    is_success: bool
    violations: Mapping[str, int] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    optimal_actions: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Number of transitions, T."""
        return len(self.actions)
