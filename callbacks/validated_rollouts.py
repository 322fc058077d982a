"""What the callbacks of grounding share: the real and imagined rollouts of a validation, reported when it ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.core.rollout import Rollout


class ValidatedRollouts(Callback, ABC):
    """Collects the rollouts that a validation step returns, under ``real`` and ``imaginary``.

    Attributes:
        real: Held-out real rollouts of this validation so far.
        imagined: Rollouts that the model has imagined in it.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.real: list[Rollout] = []
        self.imagined: list[Rollout] = []

    @abstractmethod
    def report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the rollouts of the whole validation show; called only if there are any."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self.real, self.imagined = [], []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take what a step has shown."""
        self.real += outputs.get("real", [])
        self.imagined += outputs.get("imaginary", [])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        if not trainer.sanity_checking and (self.real or self.imagined):
            self.report(trainer, pl_module)
