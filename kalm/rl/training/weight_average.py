"""An exponential moving average of the weights, to act with: training then jitters, the policy does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kalm.core.errors import CheckpointError

AVERAGE = "kalm_average"


class WeightAverage:
    """Averages of tensors by name; empty until ``start``.

    Attributes:
        rate: Part of an average that is replaced at each update. The first updates replace more, update u one u-th,
            which makes a plain mean of them, so that the random weights at the start leave no trace.
        tensors: The averages.
    """

    def __init__(self, rate: float) -> None:
        """Choose how long the average remembers: about ``1 / rate`` updates."""
        self.rate = rate
        self.tensors: dict[str, Tensor] = {}

    def start(self, weights: Mapping[str, Tensor]) -> None:
        """Follow these from now on; averages that came with a checkpoint are gone on with."""
        self._fresh = [weight.detach() for weight in weights.values()]
        self.tensors = {
            name: self.tensors[name].to(weight.device, copy=True) if name in self.tensors else weight.detach().clone()
            for name, weight in weights.items()
        }
        self._averages = list(self.tensors.values())

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Take in the weights after update ``number``, counted from 1."""
        torch._foreach_lerp_(self._averages, self._fresh, max(self.rate, 1 / number))

    def add_to(self, checkpoint: dict[str, Any]) -> None:
        """Put the averages beside the weights."""
        checkpoint[AVERAGE] = dict(self.tensors)

    def take_from(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on with a checkpoint's averages.

        Raises:
            CheckpointError: If it holds none.
        """
        if AVERAGE not in checkpoint:
            raise CheckpointError(
                f"ema_rate is {self.rate}, but the checkpoint holds no averaged weights: it was trained with ema_rate "
                "null; set that"
            )
        self.tensors = dict(checkpoint[AVERAGE])
