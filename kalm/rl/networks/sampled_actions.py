"""Continuous actions to price: drawn evenly from the action space, and from policies.

Shape letters: B batch, D distributions, M actions from each, A action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kalm.rl.networks.squashed_gaussian import SquashedGaussian


def uniform_actions(noise: Tensor) -> Tensor:
    """Actions spread evenly over [-1, 1]^A, from standard normal numbers of the same shape."""
    return torch.erf(noise / math.sqrt(2))


def sampled_actions(distributions: Sequence[SquashedGaussian], noise: Tensor) -> tuple[Tensor, Tensor]:
    """M actions from each distribution, and as many spread evenly.

    Args:
        distributions: D of them, each of a distribution a transition, (B, A).
        noise: Standard normal numbers, shape (B, D + 1, M, A).

    Returns:
        Actions, shape (B, (D + 1) * M, A), and the logarithm of their density, shape (B, (D + 1) * M), in nats; those
        of the first distribution first, the evenly spread ones last.
    """
    *of_each, of_uniform = noise.unbind(1)
    drawn = [
        SquashedGaussian(one.mean.unsqueeze(1), one.log_deviation.unsqueeze(1)).sample(own)
        for one, own in zip(distributions, of_each, strict=True)
    ]
    uniform = uniform_actions(of_uniform)
    drawn.append((uniform, torch.full_like(uniform[..., 0], -uniform.shape[-1] * math.log(2))))
    return torch.cat([actions for actions, _ in drawn], dim=1), torch.cat([density for _, density in drawn], dim=1)
