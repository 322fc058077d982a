"""Returns to go: what is still earned from each step of a rollout on, which a Decision Transformer is asked for.

Shape letters: R rollouts, n steps of all rollouts, N transitions of a store.
"""

from __future__ import annotations

from torch import Tensor

from kalm.core import names
from kalm.store.reader import RolloutStore


def returns_to_go(reward: Tensor, lengths: Tensor) -> Tensor:
    """Sum of the rewards of each step and of all later ones of its rollout, undiscounted.

    Args:
        reward: Of each step, rollouts one after the other, shape (n,).
        lengths: Steps of each rollout, int64 of shape (R,).

    Returns:
        Float32 of shape (n,).
    """
    earned = reward.double().cumsum(0)  # double: the sum runs over all rollouts
    at_end = earned[lengths.cumsum(0) - 1].repeat_interleave(lengths)
    return (at_end - earned + reward).float()


def store_returns_to_go(store: RolloutStore) -> Tensor:
    """The same for all transitions of a store, float32 of shape (N,)."""
    return returns_to_go(store.transitions[names.REWARD], store.rollouts["length"].long())
