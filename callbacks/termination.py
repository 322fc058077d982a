"""A run that is told to end does so where nothing is lost: training between two updates, all else at once."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.core.termination import Terminated

logger = logging.getLogger(__name__)


class Termination(Callback):
    """Ends a run on SIGTERM or Ctrl-C.

    Training ends behind the update that it is at, once ``UpdateCheckpoint`` has saved it, on all devices behind the
    same one. Whatever else runs ends at once: what it has finished is on the disk. A second Ctrl-C ends training at
    once as well.

    Lightning's own handler speaks to the other devices in the moment of the signal; where they are in the middle of an
    exchange of gradients, none of them ever ends. Here they agree at the end of each training step.

    Attributes:
        is_told: Whether this process was told.
        is_ending: Whether a process of the run was, as of the end of the latest training step.
    """

    def __init__(self) -> None:
        """Nobody has said anything yet."""
        self.is_told = self.is_ending = False
        self._is_interrupted = self._is_training = False
        self._updates_before = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen from now on; Lightning puts its own handlers in place a little later."""
        self.is_told = self.is_ending = self._is_interrupted = self._is_training = False
        self._listen(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen in Lightning's place; begin no validation if the training that it belongs to is ending."""
        self._listen(trainer)
        self._end_if_told()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen in Lightning's place."""
        self._listen(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen in Lightning's place."""
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen in Lightning's place; from now on there is something to lose."""
        self._listen(trainer)
        self._is_training = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End between two updates."""
        self._end_if_told()
        self._updates_before = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask all devices whether any was told; in the midst of an accumulated update is no time to end."""
        if trainer.global_step == self._updates_before:
            return
        self.is_ending = self.is_told
        if trainer.world_size > 1:
            told = torch.tensor(int(self.is_told), device=pl_module.device)
            self.is_ending = bool(trainer.strategy.reduce(told, reduce_op="max"))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last update is saved."""
        self._is_training = False
        self._end_if_told()

    def _end_if_told(self) -> None:
        if self.is_ending:
            self._is_training = False
            raise KeyboardInterrupt if self._is_interrupted else Terminated

    def _listen(self, trainer: Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
            return

        def hear(number: int, frame: Any) -> None:
            is_second, self.is_told = self.is_told, True
            self._is_interrupted |= number == signal.SIGINT
            launcher = trainer.strategy.launcher
            if launcher is not None and not is_second:
                launcher.kill(number)
            is_at_update = self._is_training and trainer.training
            if number == signal.SIGINT and (is_second or not is_at_update):
                raise KeyboardInterrupt
            if not is_at_update and not is_second:
                raise Terminated
            if not is_second:
                logger.warning("told to end: saving after this update")

        signal.signal(signal.SIGTERM, hear)
        signal.signal(signal.SIGINT, hear)
