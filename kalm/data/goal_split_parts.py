"""Shares the imagined rows of a minibatch out among the goal splits.

One push makes an easy rollout, fifty an unhappy hard one, and filters leave many of one split and few of another. Drawn
alike, transitions of the split that has most of them crowd the others out of every minibatch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kalm.core.errors import DataError
from kalm.data.mixture import MixturePart
from kalm.store.reader import RolloutStore


def goal_split_parts(
    stores: Sequence[RolloutStore], rollouts: Sequence[Tensor], num_rows: int, goal_splits: Sequence[str]
) -> list[MixturePart]:
    """One part for every goal split that has rollouts, with equally many rows, to the nearest one.

    Args:
        stores: The imagined stores.
        rollouts: For each store, rows of the rollouts to use.
        num_rows: Rows of a minibatch to share out.
        goal_splits: The domain's, in its order.

    Returns:
        Parts over all ``stores``, in the order of the splits.

    Raises:
        DataError: If there are fewer rows than splits.
    """
    splits = [store.goal_splits[rows.numpy()] for store, rows in zip(stores, rollouts, strict=True)]
    present = [split for split in goal_splits if any((found == split).any() for found in splits)]
    if num_rows < len(present):
        raise DataError(
            f"{num_rows} imagined rows of a minibatch cannot be shared out among {len(present)} goal splits; raise "
            "batch_size or set balance_goal_splits to false"
        )
    return [
        MixturePart(
            stores,
            [rows[torch.from_numpy(found == split)] for rows, found in zip(rollouts, splits, strict=True)],
            num_rows // len(present) + (place < num_rows % len(present)),
        )
        for place, split in enumerate(present)
    ]
