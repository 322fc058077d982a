"""Shifts and scales inputs by statistics of the data; they are part of the policy and travel with its checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalizer(nn.Module):
    """Maps x to (x - mean) / std; until it is given statistics, to x."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        """Make room for the statistics of vectors with ``size`` entries."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Use these from now on.

        Args:
            mean: Shape (size,).
            std: Shape (size,), or one number for all entries; an entry of 0 scales nothing.
        """
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def forward(self, values: Tensor) -> Tensor:
        """Normalised ``values``, shape (..., size)."""
        return (values - self.mean) / self.std
