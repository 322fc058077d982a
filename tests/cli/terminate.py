"""A callback that ends its own process the way a scheduler does."""

from __future__ import annotations

import os
import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Terminate(Callback):
    """Sends a signal to this process once training has made ``at_update`` updates, or when a test begins."""

    def __init__(self, at_update: int, rank: int = 0, number: int = int(signal.SIGTERM)) -> None:
        """Choose when.

        Args:
            at_update: Number of updates.
            rank: Of the process that is told.
            number: Of the signal.
        """
        self.at_update, self.rank, self.number = at_update, rank, number

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Send it at the end of the step that reaches the update."""
        if trainer.global_step == self.at_update and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Send it before the first episode."""
        os.kill(os.getpid(), self.number)


class KilledInValidation(Callback):
    """Kills this process in the midst of the validation of an update."""

    def __init__(self, at_update: int) -> None:
        """Choose when.

        Args:
            at_update: Number of updates.
        """
        self.at_update = at_update

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Die without a word, its episodes run but not reported."""
        if trainer.global_step == self.at_update:
            os.kill(os.getpid(), signal.SIGKILL)
