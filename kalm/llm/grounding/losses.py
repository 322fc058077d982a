"""What grounding minimises (KALM, section 3.1), and how.

Four losses, each one number a token, none reduced or weighted. AdamW minimises them, with a learning rate that rises
along a straight line and falls to zero along another.

Shape letters: n tokens (any selection of them), A actions or numbers in an action, O numbers in an observation,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from kalm.core.errors import DataError, require


def action_loss(prediction: Tensor, action: Tensor) -> Tensor:
    """Make the action that was taken the likely one.

    Cross-entropy where actions are indices, mean squared error where they are vectors: the paper's rule for discrete
    and continuous outputs.

    Args:
        prediction: Scores of the actions, or the predicted action, shape (n, A).
        action: Action taken, int64 of shape (n,) or float of shape (n, A).
    """
    if action.is_floating_point():
        return (prediction - action).square().mean(dim=-1)
    return functional.cross_entropy(prediction, action, reduction="none")


def change_loss(predicted_change: Tensor, change: Tensor) -> Tensor:
    """Bring the predicted next observation close to the real one: mean squared error over its numbers.

    Both are changes since the current observation in units of their spread over the data, so that a number that
    hardly ever moves counts as much as one that moves far. From (n, O) to (n,).
    """
    return (predicted_change - change).square().mean(dim=-1)


def end_loss(logit: Tensor, is_end: Tensor) -> Tensor:
    """Tell observations at which the goal has been met from those on the way: binary cross-entropy, shape (n,)."""
    return functional.binary_cross_entropy_with_logits(logit, is_end.to(logit.dtype), reduction="none")


def text_loss(logits: Tensor, token_id: Tensor) -> Tensor:
    """Make the next token of the answer, int64 of shape (n,), the likely one: cross-entropy over scores (n, V)."""
    return functional.cross_entropy(logits, token_id, reduction="none")


def require_finite(means: Mapping[str, Tensor], update: int) -> None:
    """Stop training with a ``DataError`` that names the loss whose mean is no number."""
    for name, value in means.items():
        if not torch.isfinite(value):
            raise DataError(
                f"{name} is {value.item()} at update {update}; it must be finite. Check the rollouts for extreme "
                "numbers, or lower learning_rate"
            )


@dataclass(frozen=True)
class Optimization:
    """Step sizes; their meaning and units are those of ``GroundedLLM``'s options of these names."""

    learning_rate: float
    weight_decay: float
    warmup_updates: int
    schedule_updates: int
    backbone_learning_rate_scale: float

    def __post_init__(self) -> None:
        """Check the schedule."""
        is_rise = 0 <= self.warmup_updates < self.schedule_updates
        allowed = f"at least 0 and below schedule_updates, {self.schedule_updates}"
        require(is_rise, "warmup_updates", self.warmup_updates, allowed)

    def of(self, backbone: nn.Module, *others: nn.Module) -> OptimizerLRScheduler:
        """What ``configure_optimizers`` returns, for the parameters that are trained; no decay on vectors."""
        scaled = self.learning_rate * self.backbone_learning_rate_scale
        rates = [(backbone, scaled), *((other, self.learning_rate) for other in others)]
        groups = [
            {"params": _trained(module, is_matrix), "lr": rate, "weight_decay": self.weight_decay * is_matrix}
            for is_matrix in (True, False)
            for module, rate in rates
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.98), fused=True)
        schedule: Any = {"scheduler": LambdaLR(optimizer, self._rate), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _rate(self, update: int) -> float:
        """Learning rate of ``update`` as a fraction of its peak."""
        rise = (update + 1) / max(1, self.warmup_updates)
        fall = (self.schedule_updates - update) / (self.schedule_updates - self.warmup_updates)
        return max(0.0, min(1.0, rise, fall))


def _trained(module: nn.Module, is_matrix: bool) -> list[nn.Parameter]:
    """Parameters that are trained: those with two dimensions or more, or the others."""
    return [p for p in module.parameters() if p.requires_grad and (p.dim() > 1) == is_matrix]
