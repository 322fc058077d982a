"""Mean, standard deviation and range of more numbers than fit into memory."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST_STD = 1e-6


class Moments:
    """Takes in rows piece by piece.

    Shape letters: n rows of a piece, O numbers in a row.
    """

    def __init__(self) -> None:
        """Begin with no rows."""
        self._count = 0
        self._centre: Tensor | None = None
        self._total = self._squares = torch.zeros(())
        self._least, self._greatest = torch.tensor(torch.inf), torch.tensor(-torch.inf)

    def add(self, rows: Tensor) -> None:
        """Take in rows, shape (n, O), n at least 1 for the first piece."""
        values = rows.double()
        if self._centre is None:
            self._centre = values[0]  # offsets from any row keep the squares small against their difference
        offset = values - self._centre
        self._count += len(offset)
        self._total = self._total + offset.sum(0)
        self._squares = self._squares + offset.square().sum(0)
        self._least = torch.minimum(self._least, rows.amin(0))
        self._greatest = torch.maximum(self._greatest, rows.amax(0))

    @property
    def mean(self) -> Tensor:
        """Float32 of shape (O,)."""
        assert self._centre is not None, "no rows were added"
        return (self._centre + self._total / self._count).float()

    @property
    def least(self) -> Tensor:
        """Least of each number, shape (O,)."""
        return self._least

    @property
    def greatest(self) -> Tensor:
        """Greatest of each number, shape (O,)."""
        return self._greatest

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
