"""A normal distribution whose samples are squashed into [-1, 1] by tanh: the policy of soft actor-critic.

Paper: Haarnoja et al. 2018 (arXiv:1801.01290), appendix C.

Shape letters: A action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_LOG_DEVIATION_RANGE = (-20.0, 2.0)  # the authors' code


@dataclass(frozen=True)
class SquashedGaussian:
    """Distributions of actions.

    Attributes:
        mean: Before tanh, shape (..., A).
        log_deviation: Logarithm of the standard deviation before tanh, shape (..., A).
    """

    mean: Tensor
    log_deviation: Tensor

    @classmethod
    def from_output(cls, output: Tensor) -> SquashedGaussian:
        """Read what ``gaussian_policy_network`` says, shape (..., 2 * A)."""
        mean, log_deviation = output.chunk(2, dim=-1)
        return cls(mean, log_deviation.clamp(*_LOG_DEVIATION_RANGE))

    @property
    def mode(self) -> Tensor:
        """The squashed mean, which is what the policy does when it need not explore, shape (..., A)."""
        return torch.tanh(self.mean)

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions that gradients flow through, and how likely they are.

        Args:
            noise: Standard normal numbers, of a shape that broadcasts with (..., A).

        Returns:
            Actions in [-1, 1], shape (..., A), and the logarithm of their density, shape (...), in nats.
        """
        values = self.mean + self.log_deviation.exp() * noise
        # ln(1 - tanh(u)^2) = 2 (ln 2 - u - softplus(-2 u)), which stays finite where tanh has become 1.
        log_slope = 2 * (math.log(2) - values - functional.softplus(-2 * values))
        log_density = -0.5 * noise.square() - self.log_deviation - 0.5 * math.log(2 * math.pi) - log_slope
        return torch.tanh(values), log_density.sum(-1)
