"""How fast training goes, and how much of the time it waits for data."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tensordict import TensorDictBase


class Throughput(Callback):
    """Logs, over each ``log_every_n_steps``, updates and transitions a second, and ``throughput/wait_share``.

    That is the share of time between two steps, when minibatches are drawn and moved to the device and other callbacks
    run. Validation counts in neither.
    """

    def __init__(self) -> None:
        """Take no options."""
        self._step_began = self._step_ended = 0.0
        self._forget()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._forget()
        self._updates_before = trainer.global_step
        self._step_ended = perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The wait for this step is over."""
        self._step_began = perf_counter()
        self._wait_seconds += self._step_began - self._step_ended

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step; log when it is time to."""
        self._step_ended = perf_counter()
        self._step_seconds += self._step_ended - self._step_began
        if isinstance(batch, TensorDictBase):
            self._num_transitions += batch.numel()
        self._num_steps += 1
        if self._num_steps >= trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._log(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave validation out of the wait."""
        self._step_ended = perf_counter()

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = self._step_seconds + self._wait_seconds
        num_updates = trainer.global_step - self._updates_before
        pl_module.log("throughput/updates_per_second", num_updates / seconds, prog_bar=True)
        if self._num_transitions:
            pl_module.log("throughput/transitions_per_second", self._num_transitions / seconds)
        pl_module.log("throughput/wait_share", self._wait_seconds / seconds)
        self._forget()
        self._updates_before = trainer.global_step

    def _forget(self) -> None:
        self._step_seconds = self._wait_seconds = 0.0
        self._num_steps = self._num_transitions = self._updates_before = 0
