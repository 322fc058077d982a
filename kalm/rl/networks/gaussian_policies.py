"""Normal distributions over continuous actions: their deviations, their samples, and actions to price.

``LogDeviation`` serves policies that stray equally far at every observation (IQL, AWAC). ``SquashedGaussian`` is the
policy of soft actor-critic (CQL, COMBO), Haarnoja et al. 2018 (arXiv:1801.01290), appendix C; ``LearnedScale`` is its
temperature.

Shape letters: B batch, D distributions, M actions from each, A action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_LOG_DEVIATION_RANGE = (-20.0, 2.0)  # of soft actor-critic; the authors' code


def softly_bounded(values: Tensor, low: float, high: float) -> Tensor:
    """Keep values between bounds that gradients get through: a clamp would hold for ever what has once gone beyond."""
    values = high - functional.softplus(high - values)
    return low + functional.softplus(values - low)


class LogDeviation(nn.Module):
    """Logarithm of a policy's standard deviation, learned for each component of an action."""

    def __init__(self, action_size: int, low: float, high: float, first_deviation: float) -> None:
        """Begin with ``first_deviation``, whose logarithm is between the bounds ``low`` and ``high``."""
        super().__init__()
        self.low, self.high = low, high
        # What ``softly_bounded`` turns into the logarithm of the first deviation.
        above_low = low + math.log(math.expm1(math.log(first_deviation) - low))
        self._first = high - math.log(math.expm1(high - above_low))
        self.values = nn.Parameter(torch.full((action_size,), self._first))

    def reset_parameters(self) -> None:
        """Begin with the first deviation."""
        nn.init.constant_(self.values, self._first)

    def forward(self) -> Tensor:
        """Shape (A,)."""
        return softly_bounded(self.values, self.low, self.high)


class LearnedScale(nn.Module):
    """A number above 0 that is learned by its logarithm, such as a temperature or a Lagrange multiplier."""

    def __init__(self) -> None:
        """Begin with 1."""
        super().__init__()
        self.logarithm = nn.Parameter(torch.zeros(1))

    def reset_parameters(self) -> None:
        """Begin with 1."""
        nn.init.zeros_(self.logarithm)

    def forward(self) -> Tensor:
        """The number, shape (1,)."""
        return self.logarithm.exp()


@dataclass(frozen=True)
class SquashedGaussian:
    """Normal distributions whose samples are squashed into [-1, 1] by tanh; both are before that, shape (..., A)."""

    mean: Tensor
    log_deviation: Tensor

    @classmethod
    def from_output(cls, output: Tensor) -> SquashedGaussian:
        """Read what a policy network says, shape (..., 2 * A)."""
        mean, log_deviation = output.chunk(2, dim=-1)
        return cls(mean, log_deviation.clamp(*_LOG_DEVIATION_RANGE))

    def __getitem__(self, rows: slice) -> SquashedGaussian:
        """The distributions of some rows."""
        return SquashedGaussian(self.mean[rows], self.log_deviation[rows])

    @property
    def mode(self) -> Tensor:
        """The squashed mean, which is what the policy does when it need not explore, shape (..., A)."""
        return torch.tanh(self.mean)

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions that gradients flow through, (..., A), and the logarithm of their density, (...), in nats.

        ``noise`` holds standard normal numbers, of a shape that broadcasts with (..., A).
        """
        values = self.mean + self.log_deviation.exp() * noise
        # ln(1 - tanh(u)^2) = 2 (ln 2 - u - softplus(-2 u)), which stays finite where tanh has become 1.
        log_slope = 2 * (math.log(2) - values - functional.softplus(-2 * values))
        log_density = -0.5 * noise.square() - self.log_deviation - 0.5 * math.log(2 * math.pi) - log_slope
        return torch.tanh(values), log_density.sum(-1)


def uniform_actions(noise: Tensor) -> Tensor:
    """Actions spread evenly over [-1, 1]^A, from standard normal numbers of the same shape."""
    return torch.erf(noise / math.sqrt(2))


def sampled_actions(distributions: Sequence[SquashedGaussian], noise: Tensor) -> tuple[Tensor, Tensor]:
    """M actions from each of D distributions, (B, A), and as many spread evenly, which come last.

    By standard normal numbers, (B, D + 1, M, A). Returns actions, (B, (D + 1) * M, A), and the logarithm of their
    density, (B, (D + 1) * M), in nats.
    """
    *of_each, of_uniform = noise.unbind(1)
    drawn = [
        SquashedGaussian(one.mean.unsqueeze(1), one.log_deviation.unsqueeze(1)).sample(own)
        for one, own in zip(distributions, of_each, strict=True)
    ]
    uniform = uniform_actions(of_uniform)
    drawn.append((uniform, torch.full_like(uniform[..., 0], -uniform.shape[-1] * math.log(2))))
    return torch.cat([actions for actions, _ in drawn], dim=1), torch.cat([density for _, density in drawn], dim=1)
