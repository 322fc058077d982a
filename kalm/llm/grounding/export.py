"""What a grounded language model leaves behind for programs without kalm: an adapter folder, or a whole model.

The adapter folder is an ordinary one of PEFT (``adapter_config.json``, ``adapter_model.safetensors``) with the
tokenizer; ``python -m kalm export`` writes an ordinary folder of Hugging Face, adapters merged in. Beside either stands
what kalm adds: ``kalm_heads.safetensors`` holds the encoders and heads for states and actions, ``kalm.json`` says what
all of it was trained on and from. (Where PEFT evaluates 4-bit weights on a processor with AVX512-BF16, bitsandbytes has
a kernel in bfloat16 whose scores are a few percent off; kalm does without it, see ``hugging_face_model.py``.)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

import kalm
from kalm.core.durable import sync_folder, write_durably
from kalm.core.errors import CheckpointError, KalmError
from kalm.language.prompts import DYNAMICS, EXPLANATIONS, GENERATION, prompts_hash
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.backbones.hugging_face_model import (
    ModelSettings,
    fingerprint,
    merge_adapters,
    read_config,
    read_tokenizer,
)
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.runs.checkpoint_io import VerifiedCheckpointIO

FOLDER = "adapter"
HEADS_FILE, FACTS_FILE = "kalm_heads.safetensors", "kalm.json"
ExportType = Literal["float32", "bfloat16", "float16"]


def write_adapter_folder(folder: Path, backbone: Backbone, codec: RolloutCodec, **facts: Any) -> bool:
    """Write the folder anew; whoever looks sees all of the old one, nothing for a moment, or all of the new one.

    More facts for ``kalm.json`` are plain types: which data, which update.

    Returns:
        False, with nothing written, if the backbone has no adapter.
    """
    with _whole_folder(folder) as temporary:
        if not backbone.save_adapter(temporary):
            return False
        _write_heads(temporary, codec.state_dict(), backbone.description, token_scales=codec.token_scales, **facts)
    return True


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
    trained = _below(content["state_dict"], "backbone.model.")
    merged = merge_adapters(settings, trained).to(getattr(torch, dtype))
    heads = _below(content["state_dict"], "codec.")
    with _whole_folder(output) as folder:
        merged.save_pretrained(folder)
        read_tokenizer(settings).save_pretrained(folder)
        _write_heads(folder, heads, description, dtype=dtype, update=int(content["global_step"]))


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to that takes the place of ``folder`` if it was made, and only once all of it is written.

    Raises:
        CheckpointError: If the file system refuses.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if temporary.exists():
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
            sync_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(
            f"cannot write the folder {folder}: {error.strerror or error}. Checkpoints are untouched. Free some space "
            "or the folder's permissions, then run the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_heads(folder: Path, heads: Mapping[str, Tensor], description: Mapping[str, Any], **facts: Any) -> None:
    """Put what kalm adds to a language model into a folder that exists; heads are the state of a ``RolloutCodec``."""
    save_file({name: tensor.contiguous().cpu() for name, tensor in heads.items()}, folder / HEADS_FILE)
    content = {
        "kalm": kalm.__version__,
        "backbone": description,
        "prompts_sha256": prompts_hash(),
        "prompts": {"generation": GENERATION, "dynamics": DYNAMICS, "explanation": EXPLANATIONS},
        **facts,
    }
    write_durably(folder / FACTS_FILE, (json.dumps(content, indent=1) + "\n").encode())


def _below(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
