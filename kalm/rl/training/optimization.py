"""What an update does to the weights once its loss is known: learning rate, gradient step, moving average.

The learning rate is a pure function of the update's number, so that a resumed run goes on with it. Lightning calls
eight hooks around every update, a tenth of the cost for networks this small, so a gradient step goes straight to torch
unless something is there to hook into it. Mixed precision needs nothing more: Lightning puts its autocast around the
whole training step.

Shape letters: S policies side by side.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer

from kalm.core.errors import CheckpointError, KalmError, require

logger = logging.getLogger(__name__)

ScheduleKind = Literal["constant", "linear", "cosine"]
AVERAGE = "kalm_average"  # key of a checkpoint
_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")


@dataclass(frozen=True)
class LearningRateSchedule:
    """By what to multiply the learning rate: it rises from 0 on a line over ``warmup_updates``.

    Then it is constant, or falls to 0 on a line or on half a wave of the cosine until ``num_updates``, where it stays.
    """

    kind: ScheduleKind
    warmup_updates: int
    num_updates: int | None

    def __post_init__(self) -> None:
        """Refuse a schedule that cannot be followed."""
        require(self.warmup_updates >= 0, "warmup_updates", self.warmup_updates, "0 or more")
        if self.kind == "constant":
            require(self.num_updates is None, "schedule_updates", self.num_updates, "null for a constant learning rate")
        else:
            is_long_enough = self.num_updates is not None and self.num_updates > self.warmup_updates
            allowed = f"a number above warmup_updates {self.warmup_updates} for learning_rate_schedule {self.kind}"
            require(is_long_enough, "schedule_updates", self.num_updates, allowed)

    def factor(self, update: int) -> float:
        """The factor of update ``update``, counted from 0; in [0, 1]."""
        if update < self.warmup_updates:
            return (update + 1) / self.warmup_updates
        if self.num_updates is None:
            return 1.0
        progress = min(1.0, (update - self.warmup_updates) / (self.num_updates - self.warmup_updates))
        return 1 - progress if self.kind == "linear" else (1 + math.cos(math.pi * progress)) / 2


class LearningRate:
    """Sets the learning rates of a module's optimizer."""

    def __init__(self, schedule: LearningRateSchedule, module: LightningModule) -> None:
        """Put the rates that ``configure_optimizers`` says in the place of a checkpoint's, and say so."""
        self._schedule = schedule
        self._groups = cast(LightningOptimizer, module.optimizers()).optimizer.param_groups
        configured, first_update = cast(Optimizer, module.configure_optimizers()), module.trainer.global_step
        for group, rate in zip(self._groups, [own["lr"] for own in configured.param_groups], strict=True):
            before = group.get("initial_lr", group["lr"])
            if first_update and before != rate:
                logger.warning(
                    "learning rate of %s: %s -> %s; the configuration wins over the checkpoint, from update %d on",
                    *(group.get("name", "a group"), before, rate, first_update),
                )
            group["initial_lr"] = group["lr"] = rate
        self._is_fixed = schedule.kind == "constant" and schedule.warmup_updates == 0

    def set(self, update: int) -> None:
        """Prepare for update ``update``, counted from 0."""
        if not self._is_fixed:
            factor = self._schedule.factor(update)
            for group in self._groups:
                group["lr"] = group["initial_lr"] * factor

    def metrics(self) -> dict[str, float]:
        """The present learning rate of the first group, if it changes at all."""
        return {} if self._is_fixed else {"train/learning_rate": self._groups[0]["lr"]}


class GradientStep:
    """Minimises a loss by one step, and counts it as one update of the trainer."""

    def __init__(self, module: LightningModule, clip_norm: float | None, num_policies: int = 1) -> None:
        """Look at what the trainer of ``module`` has, and choose the way.

        The whole gradient of each policy in the module is clipped to ``clip_norm``; None does not clip.

        Raises:
            KalmError: If gradients are to be clipped that are scaled, as those of half precision are.
        """
        self._module = module
        self._optimizer = cast(LightningOptimizer, module.optimizers())
        self._bare_optimizer: Optimizer = self._optimizer.optimizer
        self._clip_norm, self._num_policies = clip_norm, num_policies
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._progress = module.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        self.is_direct = _is_direct(module)
        if clip_norm is not None and _is_scaled(module):
            raise KalmError(
                f"gradient_clip_norm is {clip_norm} with trainer.precision {module.trainer.precision}, whose gradients "
                "are scaled; use trainer.precision bf16-mixed, or gradient_clip_norm null"
            )

    def __call__(self, loss: Tensor) -> None:
        """Minimise ``loss``, a scalar, by one step."""
        self._bare_optimizer.zero_grad()
        if self.is_direct:
            loss.backward()
            self._clip()
            self._progress.increment_ready()
            self._bare_optimizer.step()
            self._progress.increment_completed()
        else:
            self._module.manual_backward(loss)
            self._clip()
            self._optimizer.step()

    def _clip(self) -> None:
        # Lightning refuses its own gradient_clip_val in manual optimisation.
        if self._clip_norm is None:
            return
        if self._num_policies == 1:
            nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        else:
            _clip_each(self._parameters, self._clip_norm)


def _clip_each(parameters: Iterable[nn.Parameter], clip_norm: float) -> None:
    """Clip the gradient of each policy in stacks, (S, ...), as ``clip_grad_norm_`` of torch would clip it alone."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factors = (clip_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))


def _is_direct(module: LightningModule) -> bool:
    """Whether going straight to torch does all that Lightning would do: one device, no loss scaling, no hooks."""
    hooked = [*module.trainer.callbacks, module]  # type: ignore[attr-defined]
    has_hooks = any(is_overridden(hook, one) for one in hooked for hook in _HOOKS)
    return isinstance(module.trainer.strategy, SingleDeviceStrategy) and not _is_scaled(module) and not has_hooks


def _is_scaled(module: LightningModule) -> bool:
    return getattr(module.trainer.precision_plugin, "scaler", None) is not None


class WeightAverage:
    """An exponential moving average of the weights, to act with: training then jitters, the policy does not.

    Each update replaces ``rate`` of it. The first updates replace more, update u one u-th, which makes a plain mean of
    them, so that the random weights at the start leave no trace.
    """

    def __init__(self, rate: float) -> None:
        """Remember about ``1 / rate`` updates."""
        self.rate = rate
        self.tensors: dict[str, Tensor] = {}  # the averages by name; empty until ``start``

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
