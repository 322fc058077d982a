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
    """T ordered transitions of one attempt at one instruction.

    Attributes:
        goal: The goal in its JSON form, so that a rollout needs no domain to be read.
        instruction: The sentence it was made for.
        goal_split: Split of the instruction.
        source: Real or imaginary.
        observations: Shape (T + 1, O); the last row is the observation after the last action.
        actions: Shape (T,) integers, or (T, A) floats.
        rewards: Shape (T,).
        terminated: Shape (T,); True where the task ended, which can only be the last step.
        truncated: Shape (T,); True where time or data ran out, which can only be the last step.
        is_success: Whether the goal was true after some step.
        violations: For each of the domain's plausibility flags, how many transitions it marks.
        provenance: Plain JSON types that say how the rollout was made (empty for real ones).
    """

    goal: Mapping[str, Any]
    instruction: str
    goal_split: str
    source: Source
    observations: NDArray[np.floating[Any]]
    actions: NDArray[Any]
    rewards: NDArray[np.floating[Any]]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    is_success: bool
    violations: Mapping[str, int] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of transitions, T."""
        return len(self.actions)
