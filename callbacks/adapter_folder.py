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
        if trainer.is_global_zero:
            model, folder = cast(GroundedLLM, pl_module), Path(trainer.default_root_dir) / FOLDER
            fingerprint = getattr(getattr(trainer, "datamodule", None), "fingerprint", None)
            facts = {"update": trainer.global_step, "data_fingerprint": fingerprint}
            write_adapter_folder(folder, model.backbone, model.codec, **facts)
