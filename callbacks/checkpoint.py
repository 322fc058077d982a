"""Save training so that it can be continued exactly: every so many updates, and at the end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from kalm.core.durable import sync_folder
from kalm.core.errors import KalmError
from kalm.runs.folder import LAST


class UpdateCheckpoint(Checkpoint):
    """Writes ``update=<n>.ckpt`` into the run folder and points ``last.ckpt`` at the newest.

    It counts updates and so works for manual optimisation with several updates a step, where Lightning's
    ModelCheckpoint skips any interval that is not a multiple of that number and saves the same content twice. For the
    best checkpoint by a metric add Lightning's ModelCheckpoint beside it.

    Args:
        every_n_updates: Updates between two checkpoints; what a kill can cost at most.
        num_kept: How many checkpoints stay on the disk. The oldest is deleted only after the newest was read back
            and verified, so two is the least that survives a damaged disk. The paper averages five.
    """

    def __init__(self, every_n_updates: int = 1000, num_kept: int = 2) -> None:
        """Check the numbers before training starts."""
        if every_n_updates < 1 or num_kept < 1:
            raise KalmError(
                f"checkpoint: every_n_updates is {every_n_updates} and num_kept is {num_kept}; both must be at least 1"
            )
        self.every_n_updates = every_n_updates
        self.num_kept = num_kept
        self.saved: list[str] = []
        self._last_update_saved = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run has its starting point on the disk already."""
        self._last_update_saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when an interval has passed, and after the last update.

        The last update is saved here rather than when training ends, so that every checkpoint is taken at the same
        point of Lightning's loop: continuing from it repeats nothing and skips nothing.
        """
        is_due = trainer.global_step // self.every_n_updates > self._last_update_saved // self.every_n_updates
        if is_due or 0 < trainer.max_steps <= trainer.global_step:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a run that ended before its last update, for example by early stopping."""
        self._save(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Which checkpoints are on the disk, so that a resumed run goes on deleting the oldest."""
        return {"saved": list(self.saved)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the checkpoints of the run that is resumed."""
        self.saved = list(state_dict["saved"])

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step == self._last_update_saved or getattr(trainer, "fast_dev_run", False):
            return
        folder = Path(trainer.default_root_dir)
        name = f"update={trainer.global_step}.ckpt"
        self.saved = [other for other in self.saved if other != name] + [name]
        trainer.save_checkpoint(folder / name)
        self._last_update_saved = trainer.global_step
        if trainer.is_global_zero:
            point_to(folder / LAST, name)
        while len(self.saved) > self.num_kept:
            trainer.strategy.remove_checkpoint(folder / self.saved.pop(0))


def point_to(link: Path, name: str) -> None:
    """Let ``link`` name another file, with no moment at which it names none."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, link)
    sync_folder(link.parent)
