"""What every run has unasked: checkpoints, random numbers of its own a step, and updates as what is counted."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar

from kalm.callbacks.termination import Termination
from kalm.core.durable import sync_folder
from kalm.core.errors import require
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
        require(every_n_updates >= 1, "checkpoint.every_n_updates", every_n_updates, "at least 1")
        require(num_kept >= 1, "checkpoint.num_kept", num_kept, "at least 1")
        self.every_n_updates, self.num_kept = every_n_updates, num_kept
        self.saved: list[str] = []
        self._last_update_saved = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run has its starting point on the disk already."""
        self._last_update_saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when an interval has passed, after the last update, and when the run was told to end.

        The last update is saved here rather than when training ends, so that every checkpoint is taken at the same
        point of Lightning's loop: continuing from it repeats nothing and skips nothing.
        """
        is_due = trainer.global_step // self.every_n_updates > self._last_update_saved // self.every_n_updates
        is_last = 0 < trainer.max_steps <= trainer.global_step
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if is_due or is_last or any(isinstance(one, Termination) and one.is_ending for one in callbacks):
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


class RandomState(Callback):
    """Seeds Python's, NumPy's and torch's global generators anew for every training step.

    The state of every generator is then a pure function of (seed, process, step): a resumed run draws what an
    uninterrupted one draws, and validation, imagination or logging between two steps cannot change the training that
    follows. Nothing needs to be stored in a checkpoint for that, and it holds on several devices, where Lightning
    would store the state of the first process only.
    """

    def __init__(self, seed: int) -> None:
        """Take the seed of the run."""
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the step; micro-batches of one accumulated update are steps of their own."""
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        seed_generators(self.seed, trainer.global_rank, step)


def seed_generators(*entropy: int) -> None:
    """Seed the global generators of this process from integers; different integers give unrelated streams."""
    words = np.random.SeedSequence(entropy).generate_state(4, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002 - libraries that draw from the old global generator are why it is seeded
    seed = int(words[2]) << 32 | int(words[3])
    torch.default_generator.manual_seed(seed)
    # torch.manual_seed would queue a stack trace for a CUDA device that this process has not touched
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


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
    """

    def __init__(self, refresh_rate: int = 4) -> None:
        """Redraw so often a second: less than Lightning, whose default takes a fair part of a core."""
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
