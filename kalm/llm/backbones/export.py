"""``python -m kalm export``: a grounded language model as a plain folder of Hugging Face, adapters merged in."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from kalm.core.errors import CheckpointError, KalmError
from kalm.llm.backbones.adapter_folder import whole_folder, write_heads
from kalm.llm.backbones.hugging_face_model import (
    ModelSettings,
    fingerprint,
    merge_adapters,
    read_config,
    read_tokenizer,
)
from kalm.runs.checkpoint_io import VerifiedCheckpointIO

ExportType = Literal["float32", "bfloat16", "float16"]
_BACKBONE = "backbone."
_CODEC = "codec."


def export_model(checkpoint: Path, output: Path, model: str | None = None, dtype: ExportType = "bfloat16") -> None:
    """Write the language model of a checkpoint so that ``transformers`` opens it by itself.

    Args:
        checkpoint: A checkpoint of grounding.
        output: Folder to write; must be empty or absent.
        model: Where the pretrained model lies now; None takes where it lay in training.
        dtype: Kind of number that weights are saved as.

    Raises:
        CheckpointError: If the checkpoint is of something else, or the pretrained model is another one.
        KalmError: If the folder is not empty.
    """
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise KalmError(f"--output {output} is not empty; give a folder that is, or that does not exist yet")
    content = VerifiedCheckpointIO().load_checkpoint(checkpoint)
    description = content.get("backbone", {})
    if description.get("class") != "HuggingFaceBackbone":
        raise CheckpointError(
            f"{checkpoint} holds {description.get('class', 'no grounded language model')}; only a model that was "
            "grounded on kalm.llm.backbones.hugging_face_backbone.HuggingFaceBackbone can be exported"
        )
    settings = ModelSettings(**{field.name: description[field.name] for field in fields(ModelSettings)})
    settings = replace(settings, model=model or settings.model, attention="sdpa")
    found = fingerprint(settings, read_config(settings))
    if found != description["frozen"]:
        raise CheckpointError(
            f"{checkpoint} was trained on other weights than those of {settings.model}: {description['frozen']} -> "
            f"{found}. Give with --model where the ones that it was trained on lie"
        )
    trained = _below(content["state_dict"], f"{_BACKBONE}model.")
    merged = merge_adapters(settings, trained).to(getattr(torch, dtype))
    heads = _below(content["state_dict"], _CODEC)
    with whole_folder(output) as folder:
        merged.save_pretrained(folder)
        read_tokenizer(settings).save_pretrained(folder)
        write_heads(folder, heads, description, dtype=dtype, update=int(content["global_step"]))


def _below(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
