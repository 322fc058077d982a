"""What learners have to know of the rollouts they learn from: returns, and mean, spread and range of observations.

Shape letters: J rollouts of a selection, O numbers in an observation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kalm.core import names
from kalm.data.selection import Selection

_SMALLEST_STD = 1e-6
_CHUNK = 1 << 16


class Moments:
    """Mean, standard deviation and range of more numbers than fit into memory: takes in rows piece by piece.

    Attributes:
        least: Least of each number, shape (O,).
        greatest: Greatest of each number, shape (O,).
    """

    def __init__(self) -> None:
        """Begin with no rows."""
        self._count = 0
        self._centre: Tensor | None = None
        self._total = self._squares = torch.zeros(())
        self.least, self.greatest = torch.tensor(torch.inf), torch.tensor(-torch.inf)

    def add(self, rows: Tensor) -> None:
        """Take in rows, shape (n, O), at least one the first time."""
        values = rows.double()
        if self._centre is None:
            self._centre = values[0]  # offsets from any row keep the squares small against their difference
        offset = values - self._centre
        self._count += len(offset)
        self._total = self._total + offset.sum(0)
        self._squares = self._squares + offset.square().sum(0)
        self.least = torch.minimum(self.least, rows.amin(0))
        self.greatest = torch.maximum(self.greatest, rows.amax(0))

    @property
    def mean(self) -> Tensor:
        """Float32 of shape (O,)."""
        assert self._centre is not None, "no rows were added"
        return (self._centre + self._total / self._count).float()

    @property
    def std(self) -> Tensor:
        """Float32 of shape (O,); 1 where a number never changes."""
        return torch.where(self.spread > 0, self.spread, 1.0)

    @property
    def spread(self) -> Tensor:
        """Standard deviation, float32 of shape (O,); 0 where a number never changes, but for rounding."""
        variance = (self._squares / self._count - (self._total / self._count) ** 2).clamp_min(0.0)
        std = variance.sqrt()
        return torch.where(std < _SMALLEST_STD, 0.0, std).float()


def transition_moments(selection: Selection) -> tuple[Moments, Moments, Moments]:
    """Of observations, changes and next observations, where observations are vectors; read piece by piece."""
    of_observation, of_change, of_outcome = Moments(), Moments(), Moments()
    for rows in selection.rows().split(_CHUNK):
        observation, outcome = selection.read((names.OBSERVATION, names.NEXT_OBSERVATION), rows)
        of_observation.add(observation)
        of_change.add(outcome - observation)
        of_outcome.add(outcome)
    return of_observation, of_change, of_outcome


def rollout_returns(selection: Selection, discount: float) -> Tensor:
    """Return of every rollout, float64 of shape (J,), a reward one step later being worth ``discount`` as much."""
    lengths = selection.lengths
    (reward,) = selection.read((names.REWARD,), selection.rows())
    step = torch.arange(len(reward)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    rollout = torch.arange(len(lengths)).repeat_interleave(lengths)
    earned = reward.double() * discount ** step.double()
    return torch.zeros(len(lengths), dtype=torch.float64).index_add_(0, rollout, earned)


@dataclass(frozen=True)
class RolloutStatistics:
    """What a policy of windows has to know of the rollouts it learns from."""

    return_to_go_mean: float  # over the steps of the real rollouts
    return_to_go_std: float
    returns: Tensor  # of each real rollout, float32 of shape (J,)
    max_length: int  # steps of the longest rollout of either source


def rollout_statistics(real: Selection, used: Selection) -> RolloutStatistics:
    """Look at the real rollouts in use, and at the lengths of all in use."""
    (of_steps,) = real.read((names.RETURN_TO_GO,), real.rows())
    return RolloutStatistics(
        return_to_go_mean=of_steps.mean().item(),
        return_to_go_std=of_steps.std(unbiased=False).item(),
        returns=real.read((names.RETURN_TO_GO,), real.starts)[0],
        max_length=int(used.lengths.max()),
    )
