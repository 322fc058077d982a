"""Folders that are written in whole shards and sealed by a manifest: how stores and labels are made and checked.

A shard is one file that is complete or absent, so a killed run loses at most the shard it was on and goes on with the
next. The manifest is written last and durably: a folder without it is unfinished.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from kalm.core.durable import sync_folder, write_durably
from kalm.core.errors import DataError
from kalm.core.provenance import changes
from kalm.core.specs import Spec
from kalm.core.validation import raise_problems
from kalm.store import layout
from kalm.store.checking import Checked, changed_files, value_problems

_REMEDY = "Delete the folder and make the store again, or copy it again from where it came."


def to_json(value: Any, indent: int | None = None) -> bytes:
    """One spelling a value: sorted keys, plain ASCII, so that equal values are equal bytes and one line each."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=indent, separators=separators).encode("ascii")


def manifest_bytes(folder: Path, facts: Mapping[str, Any], digests: Mapping[str, str]) -> bytes:
    """A manifest that has facts, and the bytes and SHA-256 of each file of the folder."""
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": digest} for name, digest in digests.items()}
    return to_json({"schema_version": layout.SCHEMA_VERSION, **facts, "files": files}, indent=1) + b"\n"


def bytes_tensor(content: bytes) -> Tensor:
    """Bytes as a column of a shard."""
    return torch.from_numpy(np.array(bytearray(content), dtype=np.uint8))


class ShardFolder:
    """A folder in the making."""

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
        self.path, self._manifest, self._shards = path, manifest, path / layout.SHARDS
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
        return {path.stem for path in shard_files(self.path)}

    def check_new(self, shard: str) -> str:
        """Refuse, by a ``DataError``, a name that is no file name or is taken."""
        name = layout.check_name("shard", shard)
        if name in self.finished:
            raise DataError(f"shard {name!r} is in {self.path} already; ask finished_shards before making one")
        return name

    def write(self, shard: str, columns: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write a shard, whole or not at all; ``shard_facts`` reads its facts (plain JSON types) alone."""
        metadata = {key: json.dumps(value, sort_keys=True) for key, value in facts.items()}
        write_durably(self._shards / f"{shard}.safetensors", bytes(save(dict(columns), metadata=metadata)))

    def seal(self, manifest: bytes, files: Iterable[str]) -> None:
        """Make the names of the merged files durable, write the manifest and throw the shards away."""
        for folder in {(self.path / name).parent for name in files}:
            sync_folder(folder)
        write_durably(self.path / self._manifest, manifest)
        shutil.rmtree(self._shards)
        (self.path / layout.UNFINISHED).unlink()


def shard_files(folder: Path) -> list[Path]:
    """The shards of an unfinished folder that are complete, in the order of their names."""
    return sorted((folder / layout.SHARDS).glob("[!.]*.safetensors"))


def shard_facts(path: Path) -> dict[str, Any]:
    """The facts of a shard, without reading its columns."""
    with safe_open(path, framework="pt") as shard:
        return {key: json.loads(value) for key, value in shard.metadata().items()}


def command_to_finish(folder: Path) -> str | None:
    """The command that goes on with an unfinished folder; None where nothing was begun."""
    header = folder / layout.UNFINISHED
    return json.loads(header.read_text(encoding="utf-8"))["command"] if header.is_file() else None


def file_problems(
    folder: Path,
    manifest: str,
    expected: Mapping[str, int | None],
    files: Mapping[str, Mapping[str, Any]],
) -> Iterator[str]:
    """Which of the files that a manifest lists are missing or of another size, one line each.

    ``expected`` has the bytes of each file that there must be, None for any number.
    """
    for name, size in expected.items():
        if name not in files:
            yield f"{name}: not listed in {manifest}"
        elif size is not None and files[name]["bytes"] != size:
            yield f"{name}: listed with {files[name]['bytes']} bytes, {size} would fit the counts"
    for name, entry in files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != entry["bytes"]:
            yield f"{name}: {'missing' if found is None else f'{found} bytes'}, expected {entry['bytes']}"


def manifest_content(path: Path) -> bytes:
    """The manifest of a store as it lies on the disk.

    Raises:
        DataError: If there is none; the message has what is there instead, and the command that makes or finishes it.
    """
    if (path / layout.MANIFEST).is_file():
        return (path / layout.MANIFEST).read_bytes()
    if command := command_to_finish(path):
        raise DataError(
            f"rollout store {path} is unfinished: {len(shard_files(path))} shards are written, {layout.MANIFEST} is "
            f"not. Run this again, it goes on where it stopped: {command}"
        )
    near, there = ("it", path) if path.is_dir() else (path.parent, path.parent)
    found = f"holds {', '.join(sorted(entry.name for entry in there.iterdir())) or 'nothing'}" if there.is_dir() else ""
    raise DataError(
        f"there is no rollout store in {path} (no {layout.MANIFEST}); {near} {found or 'is missing too'}. "
        "Make real rollouts with `python -m kalm collect`, imagined ones with `python -m kalm predict`"
    )


def parse_manifest(path: Path, content: bytes) -> dict[str, Any]:
    """What a store's manifest says.

    Raises:
        DataError: If it is malformed, of another schema version, or names a file outside the store.
    """
    name = path / layout.MANIFEST
    try:
        manifest = json.loads(content)
        problems = list(_manifest_problems(manifest))
    except KeyError as error:
        raise DataError(f"{name} lacks the key {error}. {_REMEDY}") from error
    except (TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{name} is not a manifest: {error}. {_REMEDY}") from error
    raise_problems(f"{name} is malformed", problems, _REMEDY)
    return dict(manifest)


def check_files(path: Path, manifest: Mapping[str, Any], spec: Spec, columns: layout.Tables, verify: bool) -> None:
    """Compare the files of a store with what its manifest says; with ``verify`` read all, changed or not.

    Raises:
        DataError: If a file is missing or has changed, or numbers cannot be learned from; every one is named.
    """
    expected: dict[str, int | None] = {layout.INSTRUCTIONS: None, layout.PROVENANCE: None}
    for table, row_bytes in _tables_of(manifest).items():
        expected |= layout.table_files(table, row_bytes, manifest[f"num_{table}"])
    for table, forms in columns.items():
        num_rows = manifest[f"num_{table}"]
        expected |= {layout.column_file(table, key): form.row_bytes * num_rows for key, form in forms.items()}
    what = f"rollout store {path} is damaged"
    raise_problems(what, file_problems(path, layout.MANIFEST, expected, manifest["files"]), _REMEDY)
    checked = Checked(path, manifest["files"], verify)
    changed = changed_files(path, manifest["files"], checked.unknown)
    raise_problems(what, [*changed, *value_problems(path, manifest, spec, columns, checked.unknown)], _REMEDY)
    checked.note()


def _manifest_problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    if manifest["schema_version"] not in layout.READABLE_VERSIONS:
        readable = " and ".join(map(str, layout.READABLE_VERSIONS))
        yield f"schema_version: {manifest['schema_version']}, this kalm reads {readable}"
        return
    for key in ("num_rollouts", "num_transitions", *(f"num_{table}" for table in _tables_of(manifest))):
        if not isinstance(manifest[key], int) or manifest[key] < 1:
            yield f"{key}: {manifest[key]!r}, expected a positive integer"
    for flag in manifest["plausibility_flags"]:
        layout.check_name("plausibility flag", flag)
    for file in manifest["files"]:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            yield f"files: {file!r} leads out of the store"
    _ = manifest["domain"]


def _tables_of(manifest: Mapping[str, Any]) -> dict[str, int | None]:
    return layout.row_tables(layout.spec_of_manifest(manifest))
