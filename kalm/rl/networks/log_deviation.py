"""How far a continuous policy strays, the same for every observation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LogDeviation(nn.Module):
    """Logarithm of a policy's standard deviation, learned for each component of an action."""

    def __init__(self, action_size: int, low: float, high: float) -> None:
        """Begin with a deviation of 1.

        Args:
            action_size: Components of an action, A.
            low: Least logarithm.
            high: Greatest logarithm.
        """
        super().__init__()
        self.low, self.high = low, high
        self.values = nn.Parameter(torch.zeros(action_size))

    def reset_parameters(self) -> None:
        """Begin with a deviation of 1."""
        nn.init.zeros_(self.values)

    def forward(self) -> Tensor:
        """Shape (A,)."""
        return self.values.clamp(self.low, self.high)
