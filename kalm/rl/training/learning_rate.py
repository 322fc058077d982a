"""The step size of every update: a pure function of the update's number, so that a resumed run goes on with it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer

from kalm.core.require import require

logger = logging.getLogger(__name__)

ScheduleKind = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class LearningRateSchedule:
    """By what to multiply the learning rate.

    Attributes:
        kind: Constant after the warm-up, or falling to 0 on a line or on half a wave of the cosine.
        warmup_updates: Updates over which it rises from 0 on a line, ahead of the rest.
        num_updates: Updates after which it has fallen to 0, the warm-up included; where it stays.
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
    """Sets an optimizer's learning rates."""

    def __init__(
        self, schedule: LearningRateSchedule, optimizer: Optimizer, rates: Sequence[float], first_update: int
    ) -> None:
        """Put the configured learning rates in the place of those that came with a checkpoint, and say so.

        Args:
            schedule: What to multiply them by.
            optimizer: Whose learning rates to set.
            rates: The configured learning rate of each of its groups.
            first_update: Updates made so far.
        """
        self._schedule = schedule
        self._groups = optimizer.param_groups
        for group, rate in zip(self._groups, rates, strict=True):
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
        return {} if self._is_fixed else {"learning_rate": self._groups[0]["lr"]}
