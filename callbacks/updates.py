"""Updates, not batches, are what is counted: on the x-axis of every metric and on the progress bar."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


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


class UpdateProgressBar(RichProgressBar):
    """Lightning's rich bar with updates on it instead of batches.

    One training step may perform many updates, and a resumed run does not start at zero; Lightning's own bar would stop
    at a fraction of its length.

    Args:
        refresh_rate: Redraws a second.
    """

    def __init__(self, refresh_rate: int = 4) -> None:
        """Redraw less often than Lightning, whose default takes a fair part of a core."""
        super().__init__(refresh_rate=refresh_rate)

    @property
    def total_train_batches(self) -> int | float:
        """Length of the bar: all updates, or the batches of an epoch when their number is not limited."""
        return self.trainer.max_steps if self._counts_updates else super().total_train_batches

    @property
    def _counts_updates(self) -> bool:
        return self.trainer.max_steps > 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar to the update that was just made."""
        position = trainer.global_step - 1 if self._counts_updates else batch_idx
        super().on_train_batch_end(trainer, pl_module, outputs, batch, position)

    def _get_train_description(self, current_epoch: int) -> str:
        return "Updates" if self._counts_updates else super()._get_train_description(current_epoch)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What is printed right of the bar, without Lightning's version number, which no run here has."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}
