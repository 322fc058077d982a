"""Whole shards while something large comes in, then one merge and a seal: how stores and labels are written.

A shard is one file that is complete or absent, so a killed run loses at most the shard it was on and goes on with the
next. The sealed folder's manifest is written last and durably: a folder without it is unfinished.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from kalm.core.durable import sync_folder, write_durably
from kalm.core.errors import DataError
from kalm.core.provenance import changes
from kalm.core.validation import raise_problems
from kalm.store import layout
from kalm.store.manifest import to_json


def bytes_tensor(content: bytes) -> Tensor:
    """Bytes as a column of a shard."""
    return torch.from_numpy(np.array(bytearray(content), dtype=np.uint8))


class ShardFolder:
    """A folder in the making.

    Attributes:
        path: Where it is.
    """

    def __init__(
        self, path: Path, manifest: str, what: str, description: Mapping[str, Any], command: str | None
    ) -> None:
        """Begin it, or go on with what was begun with the same description.

        Args:
            path: Where it is.
            manifest: Name of the file that seals it.
            what: What it is, for messages.
            description: Plain JSON types that must be the same when it is gone on with.
            command: Command line that goes on with it when it is found unfinished; None takes that of this process.

        Raises:
            DataError: If it is sealed already, or was begun with another description.
        """
        self.path, self._manifest, self._what = path, manifest, what
        self._shards = path / layout.SHARDS
        if (path / manifest).is_file():
            raise DataError(f"{what} {path} is finished; delete the folder to make it anew")
        header, description = path / layout.UNFINISHED, json.loads(to_json(description))
        self._shards.mkdir(parents=True, exist_ok=True)
        if header.is_file():
            begun = json.loads(header.read_text(encoding="utf-8"))["description"]
            raise_problems(
                f"the unfinished {what} {path} was begun with other settings",
                changes(begun, description),
                "Use the first settings to finish it, or delete the folder.",
            )
        for leftover in (*path.glob(".*.tmp"), *self._shards.glob(".*.tmp")):
            leftover.unlink()
        command = shlex.join(sys.orig_argv) if command is None else command
        write_durably(header, to_json({"description": description, "command": command}))

    @property
    def finished(self) -> set[str]:
        """Names of the shards that are complete on disk."""
        return {path.stem for path in self.files()}

    def files(self) -> list[Path]:
        """Their files, in the order of their names."""
        return sorted(self._shards.glob("[!.]*.safetensors"))

    def check_new(self, shard: str) -> str:
        """Refuse a name that is no file name or is taken.

        Raises:
            DataError: If it is.
        """
        name = layout.check_name("shard", shard)
        if name in self.finished:
            raise DataError(f"shard {name!r} is in {self.path} already; ask finished_shards before making one")
        return name

    def write(self, shard: str, columns: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write a shard, whole or not at all.

        Args:
            shard: Its name, which ``check_new`` has seen.
            columns: What it holds.
            facts: Plain JSON types that ``shard_facts`` reads without the columns.
        """
        metadata = {key: json.dumps(value, sort_keys=True) for key, value in facts.items()}
        write_durably(self._shards / f"{shard}.safetensors", bytes(save(dict(columns), metadata=metadata)))

    def seal(self, manifest: bytes, files: Iterable[str]) -> None:
        """Make the names of the merged files durable, write the manifest and throw the shards away."""
        for folder in {(self.path / name).parent for name in files}:
            sync_folder(folder)
        write_durably(self.path / self._manifest, manifest)
        shutil.rmtree(self._shards)
        (self.path / layout.UNFINISHED).unlink()


def shard_facts(path: Path) -> dict[str, Any]:
    """The facts of a shard, without reading its columns."""
    with safe_open(path, framework="pt") as shard:
        return {key: json.loads(value) for key, value in shard.metadata().items()}


def column(parts: Iterable[NDArray[Any]], form: layout.Column) -> Tensor:
    """Parts of a column one after the other, in the type that the layout gives it."""
    arrays = list(parts)
    if not arrays:
        return torch.zeros(0, *form.shape, dtype=form.dtype)
    return torch.from_numpy(np.concatenate(arrays)).to(form.dtype).contiguous()
