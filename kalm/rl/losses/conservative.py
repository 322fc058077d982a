"""The regulariser of conservative Q-learning.

Shape letters: B batch, A actions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cql_penalty(q: Tensor, action: Tensor) -> Tensor:
    """Price actions the dataset never tried, so that the policy is not lured by guesses.

    For each transition: the log-sum-exp of Q over all actions, minus Q of the recorded action. It nears zero
    only when the recorded action dominates, so minimising it pushes unseen actions down.
    This is the regulariser of CQL(H), Eq. 4 of Kumar et al. 2020 (arXiv:2006.04779), discrete actions, before
    the weight alpha, which the caller applies.

    Args:
        q: Value of every action, shape (B, A), in units of discounted reward.
        action: Recorded action index, shape (B,), int64, in [0, A).

    Returns:
        Penalty per transition, shape (B,), never negative, not reduced.

    Raises:
        ValueError: If ``q`` is not 2-D or ``action`` is not shape (B,).
    """
    if q.ndim != 2 or action.shape != q.shape[:1]:
        raise ValueError(f"cql_penalty needs q of shape (B, A) and action of shape (B,); got {q.shape}, {action.shape}")
    return torch.logsumexp(q, dim=-1) - q.gather(-1, action.unsqueeze(-1)).squeeze(-1)
