"""A callback that ends its own process the way a scheduler does."""

from __future__ import annotations

import os
import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Terminate(Callback):
    """Sends SIGTERM to this process once training has made ``at_update`` updates."""

    def __init__(self, at_update: int) -> None:
        """Choose when.

        Args:
            at_update: Number of updates.
        """
        self.at_update = at_update

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Send it at the end of the step that reaches the update."""
        if trainer.global_step == self.at_update:
            os.kill(os.getpid(), signal.SIGTERM)
