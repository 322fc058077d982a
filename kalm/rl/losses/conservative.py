"""The regulariser of conservative Q-learning.

Shape letters: B batch, A actions, M sampled actions.
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


def sampled_cql_penalty(sampled_q: Tensor, log_density: Tensor, recorded_q: Tensor) -> Tensor:
    """The same penalty where actions are vectors: the sum over all actions becomes one over samples of them.

    Each sample counts by one over the density that it was drawn with, as importance sampling asks. This is appendix F
    of Kumar et al. 2020 (arXiv:2006.04779), but for a constant: like the authors' code it adds the M samples up, where
    the paper takes their mean, so it is greater by ln M. It may be negative where few samples are drawn.

    Args:
        sampled_q: Value of each sampled action, shape (..., B, M), in units of discounted reward.
        log_density: Logarithm of the density that each was drawn with, shape (B, M), in nats.
        recorded_q: Value of the recorded action, shape (..., B).

    Returns:
        Penalty per transition, shape (..., B), before its weight, not reduced.
    """
    return torch.logsumexp(sampled_q - log_density, dim=-1) - recorded_q
