"""One x-axis for every metric of every run: the number of updates made so far."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class UpdateAxis(Callback):
    """Tells Lightning to log against the update counter.

    Lightning counts batches instead, from zero: with several updates a batch its axis would depend on how many, and
    after a resume the first new point would lie on the last old one. A metric called ``step`` replaces its count.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Place what the training step has logged."""
        pl_module.log("step", float(trainer.global_step), batch_size=1)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Place what a validation during training has logged."""
        if trainer.state.fn == "fit":
            pl_module.log("step", float(trainer.global_step), batch_size=1)
