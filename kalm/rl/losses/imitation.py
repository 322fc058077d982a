"""Losses that copy the recorded actions.

Shape letters: B batch, A actions.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def imitation_loss(log_probability: Tensor, action: Tensor) -> Tensor:
    """Make the recorded action likely: the negative log-likelihood of a categorical policy.

    Args:
        log_probability: Log of the policy's probability of each action, shape (B, A).
        action: Recorded action index, shape (B,), int64, in [0, A).

    Returns:
        Loss per transition, shape (B,), in nats, not reduced.
    """
    return functional.nll_loss(log_probability, action, reduction="none")


def log_probability_penalty(log_probability: Tensor) -> Tensor:
    """Keep a categorical policy from being certain: the mean over actions of the squared log-probability.

    It is smallest for the uniform policy, (ln A)^2, and grows without bound as any action becomes impossible.

    Args:
        log_probability: Log of the policy's probability of each action, shape (B, A).

    Returns:
        Penalty per transition, shape (B,), before its weight, not reduced.
    """
    return log_probability.square().mean(dim=-1)


def squared_action_error(predicted: Tensor, action: Tensor) -> Tensor:
    """Make a deterministic policy answer with the recorded action: the mean squared error over action components.

    Args:
        predicted: The policy's action, shape (B, A).
        action: Recorded action, shape (B, A), in [-1, 1].

    Returns:
        Loss per transition, shape (B,), not reduced.
    """
    return (predicted - action).square().mean(dim=-1)
