"""The adapter folder: what grounding taught a pretrained model, as files that programs without kalm can open.

An ordinary folder of PEFT (``adapter_config.json``, ``adapter_model.safetensors``) with the tokenizer, and beside them
what kalm adds: ``kalm_heads.safetensors`` holds the encoders and heads for states and actions, ``kalm.json`` says what
all of it was trained on and from.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

import kalm
from kalm.core.durable import sync_folder, write_durably
from kalm.core.errors import CheckpointError
from kalm.language.prompts import DYNAMICS, EXPLANATIONS, GENERATION, prompts_hash
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.grounding.rollout_codec import RolloutCodec

FOLDER = "adapter"
HEADS_FILE, FACTS_FILE = "kalm_heads.safetensors", "kalm.json"


def write_adapter_folder(folder: Path, backbone: Backbone, codec: RolloutCodec, **facts: Any) -> bool:
    """Write the folder anew; whoever looks sees all of the old one, nothing for a moment, or all of the new one.

    Args:
        folder: Where to.
        backbone: A language model.
        codec: Its encoders and heads.
        facts: More for ``kalm.json``, plain types: which data, which update.

    Returns:
        False, with nothing written, if the backbone has no adapter.
    """
    with whole_folder(folder) as temporary:
        if not backbone.save_adapter(temporary):
            return False
        write_heads(temporary, codec.state_dict(), backbone.description, token_scales=codec.token_scales, **facts)
    return True


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
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


def write_heads(folder: Path, heads: Mapping[str, Tensor], description: Mapping[str, Any], **facts: Any) -> None:
    """Put what kalm adds to a language model into a folder that exists.

    Args:
        folder: Where to.
        heads: State of a ``RolloutCodec``.
        description: What the language model under it is.
        facts: More for ``kalm.json``, plain types.
    """
    save_file({name: tensor.contiguous().cpu() for name, tensor in heads.items()}, folder / HEADS_FILE)
    content = {
        "kalm": kalm.__version__,
        "backbone": description,
        "prompts_sha256": prompts_hash(),
        "prompts": {"generation": GENERATION, "dynamics": DYNAMICS, "explanation": EXPLANATIONS},
        **facts,
    }
    write_durably(folder / FACTS_FILE, (json.dumps(content, indent=1) + "\n").encode())
