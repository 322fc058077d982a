"""Advantage-weighted imitation: copy recorded actions, the better ones more.

Shape letters: B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def advantage_weight(advantage: Tensor, inverse_temperature: float, max_weight: float) -> Tensor:
    """How often a recorded action counts when it is copied: exponentially more, the better it turned out.

    At an inverse temperature of 0 every action counts once, which is behaviour cloning; without bound, only the best
    ones count, which is Q-learning over the recorded actions. The weight is clipped because a few large advantages
    would otherwise drown the rest. Eq. 7 of Kostrikov et al. 2021 (arXiv:2110.06169); Peng et al. 2019
    (arXiv:1910.00177).

    Args:
        advantage: Value of the recorded action minus the value of its observation, shape (B,).
        inverse_temperature: How much more a better action counts, 0 or more, in units of one over reward.
        max_weight: Largest weight, above 0.

    Returns:
        Weight per transition, shape (B,), in (0, ``max_weight``], without gradient.
    """
    return torch.exp(inverse_temperature * advantage.detach()).clamp(max=max_weight)
