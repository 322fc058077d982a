"""Keeps the rollouts that earned most: what a learner that only imitates needs of data of mixed quality.

With behaviour cloning this is "filtered BC", the %BC of Decision Transformer (Chen et al. 2021, arXiv:2106.01345,
section 5.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kalm.core import names
from kalm.store.reader import RolloutStore


def top_return_rollouts(
    stores: Sequence[RolloutStore], rollouts: Sequence[Tensor], fraction: float, discount: float
) -> list[Tensor]:
    """Of some rollouts of some stores taken together, those of the highest return of each goal split.

    Goals of different splits pay differently, and one push pays sooner than fifty: across splits a return says more
    about the goal than about the rollout.

    Args:
        stores: The stores of one source; their rollouts of one split compete with each other.
        rollouts: For each store, rows of the rollouts to choose from, int64, ascending.
        fraction: Share to keep, in (0, 1], to the nearest rollout but at least one of each split; of equal returns
            the first.
        discount: Worth of a reward one step later; 1 counts all alike.

    Returns:
        For each store, rows of the rollouts to keep, ascending.
    """
    num_candidates = sum(len(rows) for rows in rollouts)
    if fraction == 1 or not num_candidates:
        return list(rollouts)
    chosen = list(zip(stores, rollouts, strict=True))
    returns = torch.cat([rollout_returns(store, discount)[rows] for store, rows in chosen])
    goal_split = np.concatenate([store.goal_splits[rows.numpy()] for store, rows in chosen])
    is_kept = torch.zeros(num_candidates, dtype=torch.bool)
    for split in np.unique(goal_split):
        competing = torch.from_numpy(np.flatnonzero(goal_split == split))
        best = returns[competing].argsort(descending=True, stable=True)
        is_kept[competing[best[: max(1, round(fraction * len(competing)))]]] = True
    return [rows[kept] for rows, kept in zip(rollouts, is_kept.split([len(rows) for rows in rollouts]), strict=True)]


def rollout_returns(store: RolloutStore, discount: float) -> Tensor:
    """Return of every rollout of a store, float64 of shape (R,): equal rollouts have equal returns.

    Args:
        store: Holds R rollouts.
        discount: Worth of a reward one step later.
    """
    step, reward = store.transitions[names.STEP], store.transitions[names.REWARD].double()
    returns = torch.zeros(store.num_rollouts, dtype=torch.float64)
    return returns.index_add_(0, store.transitions[names.ROLLOUT_ID].long(), reward * discount ** step.double())
