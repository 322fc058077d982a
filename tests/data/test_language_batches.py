"""Identity of a work item: equal for equal work, different for any difference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kalm.core.goal import InstructedGoal
from kalm.data.language_batches import WorkItem
from tests.chain_domain import CellGoal

ITEM = WorkItem(InstructedGoal(CellGoal(1), "step left", "easy"), np.eye(5, dtype=np.float32)[2], 12, 7)


def test_identity_tells_every_difference() -> None:
    """Goal, sentence, start, limit, seed and model each change it; nothing else does."""
    others = [
        replace(ITEM, instructed=InstructedGoal(CellGoal(3), "step left", "easy")),
        replace(ITEM, instructed=InstructedGoal(CellGoal(1), "step to the left", "easy")),
        replace(ITEM, start=np.eye(5, dtype=np.float32)[3]),
        replace(ITEM, max_steps=11),
        replace(ITEM, seed=8),
    ]
    identities = [item.identity("model") for item in (ITEM, *others)] + [ITEM.identity("another model")]
    assert len(set(identities)) == len(identities) == 7
    assert replace(ITEM, start=ITEM.start.copy()).identity("model") == identities[0]
