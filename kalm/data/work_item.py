"""One imagined rollout to be made: what for, from where, with which luck."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import InstructedGoal


@dataclass(frozen=True, eq=False)
class WorkItem:
    """Everything that decides an imagined rollout but the model.

    Attributes:
        instructed: The goal and the sentence that asks for it.
        start: Observation to start from, float32 of shape (O,).
        max_steps: Steps after which the rollout is truncated.
        seed: Seed of the rollout's own random draws, so that it does not depend on its batch.
    """

    instructed: InstructedGoal
    start: NDArray[np.float32]
    max_steps: int
    seed: int

    def identity(self, provenance: str) -> str:
        """Hash of goal, sentence, start, limit and seed, and of ``provenance``, which names model and prompt."""
        facts = json.dumps([self.instructed.to_json(), self.max_steps, self.seed, provenance], sort_keys=True)
        return hashlib.sha256(facts.encode() + self.start.astype("<f4").tobytes()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class WorkShard:
    """Work items that are imagined together and stored together.

    Attributes:
        name: Name of the shard; names sort in the order of the work.
        items: What to imagine.
    """

    name: str
    items: list[WorkItem]
