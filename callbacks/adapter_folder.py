"""Keep an adapter folder beside the checkpoints, for programs that know PEFT and not kalm."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.llm.grounding.export import FOLDER, write_adapter_folder
from kalm.llm.grounding.grounded_llm import GroundedLLM


class AdapterFolder(Callback):
    """Writes ``<run folder>/adapter`` whenever a checkpoint is saved; a backbone without an adapter gets none."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that starts afresh leaves no adapter of an earlier one beside its checkpoints."""
        if trainer.is_global_zero and trainer.global_step == 0:
            shutil.rmtree(Path(trainer.default_root_dir) / FOLDER, ignore_errors=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the weights that go into the checkpoint."""
        model = cast(GroundedLLM, pl_module)
        if trainer.is_global_zero:
            data = getattr(trainer, "datamodule", None)
            write_adapter_folder(
                Path(trainer.default_root_dir) / FOLDER,
                model.backbone,
                model.codec,
                update=trainer.global_step,
                data_fingerprint=getattr(data, "fingerprint", None),
            )
