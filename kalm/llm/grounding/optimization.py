"""How a language model and its encoders and heads are trained: AdamW, a straight rise, a straight fall to zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Optimization:
    """Step sizes; their meaning and units are those of ``GroundedLLM``'s options of these names."""

    learning_rate: float
    weight_decay: float
    warmup_steps: int
    schedule_steps: int
    backbone_learning_rate_scale: float

    def __post_init__(self) -> None:
        """Check the schedule."""
        if not 0 <= self.warmup_steps < self.schedule_steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}; it must be at least 0 and below schedule_steps, "
                f"{self.schedule_steps}"
            )

    def of(self, backbone: nn.Module, codec: nn.Module) -> OptimizerLRScheduler:
        """What ``configure_optimizers`` returns, for the parameters that are trained; no decay on vectors."""
        rates = (backbone, self.learning_rate * self.backbone_learning_rate_scale), (codec, self.learning_rate)
        groups = [
            {"params": _trained(module, is_matrix), "lr": rate, "weight_decay": self.weight_decay * is_matrix}
            for is_matrix in (True, False)
            for module, rate in rates
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98), fused=True)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, self._rate), "interval": "step"},
        }

    def _rate(self, step: int) -> float:
        """Learning rate of update ``step`` as a fraction of its peak."""
        rise = (step + 1) / max(1, self.warmup_steps)
        fall = (self.schedule_steps - step) / (self.schedule_steps - self.warmup_steps)
        return max(0.0, min(1.0, rise, fall))


def _trained(module: nn.Module, is_matrix: bool) -> list[nn.Parameter]:
    """Parameters that are trained: those with two dimensions or more, or the others."""
    return [p for p in module.parameters() if p.requires_grad and (p.dim() > 1) == is_matrix]
