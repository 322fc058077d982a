"""Manifests, which seal what was written: how they are spelled, what a store's says, and whether its files agree."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kalm.core.durable import file_sha256
from kalm.core.errors import DataError
from kalm.core.validation import raise_problems
from kalm.store import layout
from kalm.store.row_tables import END_FILE, ROWS_FILE

_REMEDY = "Delete the folder and make the store again, or copy it again from where it came."


def to_json(value: Any, indent: int | None = None) -> bytes:
    """One spelling a value: sorted keys, plain ASCII, so that equal values are equal bytes and one line each."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=indent, separators=separators).encode("ascii")


def listed(folder: Path, digests: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """How a manifest lists files: name -> bytes and SHA-256."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest} for name, digest in sorted(digests.items())
    }


def file_problems(
    folder: Path,
    manifest: str,
    expected: Mapping[str, int | None],
    files: Mapping[str, Mapping[str, Any]],
    verify: bool,
) -> list[str]:
    """What is wrong with files that a manifest lists, one line each.

    Args:
        folder: Where they lie.
        manifest: Name of the manifest.
        expected: Files that there must be -> their bytes; None for any number.
        files: What the manifest lists.
        verify: Compare the SHA-256 of every file, rather than its size only.
    """
    problems = []
    for name, size in expected.items():
        if name not in files:
            problems.append(f"{name}: not listed in {manifest}")
        elif size is not None and files[name]["bytes"] != size:
            problems.append(f"{name}: listed with {files[name]['bytes']} bytes, {size} would fit the counts")
    for name, entry in files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != entry["bytes"]:
            problems.append(f"{name}: {'missing' if found is None else f'{found} bytes'}, expected {entry['bytes']}")
        elif verify and file_sha256(file) != entry["sha256"]:
            problems.append(f"{name}: its content changed since it was written (SHA-256 differs)")
    return problems


def manifest_content(path: Path) -> bytes:
    """The manifest of a store as it lies on the disk.

    Raises:
        DataError: If there is none; the message has what is there instead, and the command that makes or finishes it.
    """
    if (path / layout.MANIFEST).is_file():
        return (path / layout.MANIFEST).read_bytes()
    header = path / layout.UNFINISHED
    if header.is_file():
        shards = len(list((path / layout.SHARDS).glob("[!.]*.safetensors")))
        command = json.loads(header.read_text(encoding="utf-8"))["command"]
        raise DataError(
            f"rollout store {path} is unfinished: {shards} shards are written, {layout.MANIFEST} is not. "
            f"Run this again, it goes on where it stopped: {command}"
        )
    if not path.is_dir():
        near = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        found = f"{path.parent} holds {', '.join(near) or 'nothing'}" if path.parent.is_dir() else "nor does its parent"
    else:
        found = f"it holds {', '.join(sorted(entry.name for entry in path.iterdir())) or 'nothing'}"
    raise DataError(
        f"there is no rollout store in {path} (no {layout.MANIFEST}); {found}. Make real rollouts with "
        "`python -m kalm collect`, imagined ones with `python -m kalm predict`"
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


def check_files(
    path: Path, manifest: Mapping[str, Any], columns: Mapping[str, Mapping[layout.Key, layout.Column]], verify: bool
) -> None:
    """Compare the files of a store with what its manifest says.

    Args:
        path: Folder of the store.
        manifest: What ``parse_manifest`` found.
        columns: The columns of each table.
        verify: Compare the SHA-256 of every file, rather than its size only.

    Raises:
        DataError: If a file is missing or has changed; every one is named.
    """
    expected: dict[str, int | None] = {layout.INSTRUCTIONS: None, layout.PROVENANCE: None}
    for table, row_bytes in _tables_of(manifest).items():
        num_rows = manifest[f"num_{table}"]
        expected[f"{table}/{ROWS_FILE}"] = None if row_bytes is None else row_bytes * num_rows
        if row_bytes is None:
            expected[f"{table}/{END_FILE}"] = 8 * num_rows
    expected |= {
        layout.column_file(table, key): column.row_bytes * manifest[f"num_{table}"]
        for table, keys in columns.items()
        for key, column in keys.items()
    }
    problems = file_problems(path, layout.MANIFEST, expected, manifest["files"], verify)
    raise_problems(f"rollout store {path} is damaged", problems, _REMEDY)


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
