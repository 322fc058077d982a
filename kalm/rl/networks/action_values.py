"""Reads one value a transition out of critics that answer for all actions at once.

Shape letters: B batch, A actions, N critics.
"""

from __future__ import annotations

from torch import Tensor


def value_of_action(q: Tensor, action: Tensor) -> Tensor:
    """Pick the value of one action a transition.

    Args:
        q: Value of every discrete action, shape (..., B, A); leading dimensions, such as N critics, read the same one.
        action: Action index, shape (B,), int64, in [0, A).

    Returns:
        Shape (..., B).
    """
    return q.gather(-1, action.unsqueeze(-1).expand(*q.shape[:-1], 1)).squeeze(-1)
