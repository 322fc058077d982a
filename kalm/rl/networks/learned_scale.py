"""A positive number that is learned, such as a temperature or a Lagrange multiplier."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnedScale(nn.Module):
    """A number above 0, learned by its logarithm; it begins as 1."""

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
