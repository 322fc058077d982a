"""A validation that a run was killed in is made up when it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.core.durable import write_durably
from kalm.runs.folder import VALIDATED_FILE


class MadeUpValidation(Callback):
    """Notes in the run folder, behind each validation of ``fit``, the update that was validated.

    A checkpoint is written before the validation that falls on its update. Killed in between, the run would go on
    behind it, and nobody would ever validate that update; what has no note is made up before the first new update, or
    when there is none.
    """

    def __init__(self) -> None:
        """Nothing is to be made up."""
        self._is_first = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that begins at an earlier update than the last one that was validated does so again."""
        self._is_first = trainer.global_step > 0
        if trainer.is_global_zero and validated_update(trainer) > trainer.global_step:
            note_validation(trainer, trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the first step after a resume, make up what is missing; Lightning's counts of it stay as they are."""
        if not self._is_first:
            return
        self._is_first = False
        if is_validation_missing(trainer):
            loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
            progress, is_first_iteration = loop.batch_progress.state_dict(), connector._first_loop_iter
            trainer.validating = True
            loop.run()
            trainer.training = True
            connector._first_loop_iter = is_first_iteration
            loop.batch_progress.load_state_dict(progress)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything about this validation is written."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.is_global_zero:
            note_validation(trainer, trainer.global_step)


def is_validation_missing(trainer: Trainer) -> bool:
    """Whether the update that a run stands at should have been validated and was not; all devices are told the same."""
    interval = trainer.val_check_batch
    if not trainer.enable_validation or not isinstance(interval, int):
        return False
    # The batch that has just begun, if one has, is counted as ready but not as processed.
    num_batches = trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
    is_due = trainer.global_step > 0 and num_batches % interval == 0
    return bool(trainer.strategy.broadcast(is_due and validated_update(trainer) < trainer.global_step))


def validated_update(trainer: Trainer) -> int:
    """The last update whose validation is written down; -1 if there is none."""
    path = Path(trainer.default_root_dir) / VALIDATED_FILE
    return int(json.loads(path.read_text(encoding="utf-8"))["update"]) if path.is_file() else -1


def note_validation(trainer: Trainer, update: int) -> None:
    """Write down that an update was validated."""
    folder = Path(trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / VALIDATED_FILE, json.dumps({"update": update}).encode())
