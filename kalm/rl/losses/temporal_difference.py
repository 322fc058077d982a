"""One-step temporal-difference learning: the target and the loss around it.

Shape letters: B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def td_target(reward: Tensor, discount: float, next_value: Tensor, terminated: Tensor) -> Tensor:
    """What a step turned out to be worth: its reward, plus the discounted value of where it led unless the task ended.

    A step that was merely truncated still bootstraps, which is why only ``terminated`` is asked for.

    Args:
        reward: Shape (B,).
        discount: Worth of a reward one step later, in [0, 1].
        next_value: Value of the next observation, shape (B,). Gradients flow through it unless the caller stops them.
        terminated: True where the task ended, shape (B,).

    Returns:
        Target per transition, shape (B,).
    """
    return torch.where(terminated, reward, reward + discount * next_value)


def huber_td_loss(value: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Pull a value towards its target: half the squared error up to ``delta``, linear beyond (Mnih et al., 2015).

    The linear part keeps one large reward from dominating an update.

    Args:
        value: Value of the recorded action, shape (B,).
        target: Shape (B,); the caller stops its gradient.
        delta: Error at which the loss becomes linear, in units of reward.

    Returns:
        Loss per transition, shape (B,), not reduced.
    """
    return functional.huber_loss(value, target, reduction="none", delta=delta)
