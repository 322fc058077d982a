"""Reads a rollout store: columns by memory map, so that a store may be larger than memory.

Shape letters: N transitions, R rollouts, O numbers in an observation, A numbers in a continuous action.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict

from kalm.core import names
from kalm.core.durable import file_sha256
from kalm.core.errors import DataError
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.core.validation import raise_problems
from kalm.store import layout

_REMEDY = "Delete the folder and make the store again, or copy it again from where it came."


@dataclass(frozen=True)
class InstructionRow:
    """One row of a store's instruction table: the goal's JSON form, one sentence for it, and the sentence's split."""

    goal: dict[str, Any]
    instruction: str
    goal_split: str


class RolloutStore:
    """A finished store, open for reading.

    The columns are private memory maps: they take no memory of their own, any number of processes shares them, and
    writing into one by mistake changes nothing on the disk.

    Attributes:
        path: Folder of the store.
        manifest: What it holds and how it was made.
        fingerprint: SHA-256 of the manifest, which names the SHA-256 of every file: equal data, equal fingerprint.
        transitions: Batch of N rows with the keys of ``kalm.core.names``.
        rollouts: Batch of R rows: ``start``, ``length``, ``instruction_id``, ``source``, ``is_success``
            and ``("violations", <flag>)``.
    """

    def __init__(self, path: str | Path, verify: bool = False) -> None:
        """Open a store.

        Args:
            path: Its folder.
            verify: Read every file and compare its SHA-256, rather than its size only.

        Raises:
            DataError: If the store is missing, unfinished (the message has the command that goes on with it) or
                malformed (every bad file is named at once).
        """
        self.path = Path(path)
        content = _read_manifest(self.path)
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.manifest: dict[str, Any] = _parse_manifest(self.path, content)
        columns = {
            layout.TRANSITIONS: layout.transition_columns(self.manifest),
            layout.ROLLOUTS: layout.rollout_columns(self.manifest["plausibility_flags"]),
        }
        problems = _file_problems(self.path, self.manifest, columns, verify)
        raise_problems(f"rollout store {self.path} is damaged", problems, _REMEDY)
        self.transitions, self.rollouts = (
            _map_columns(self.path, table, columns[table], self.manifest[f"num_{table}"])
            for table in (layout.TRANSITIONS, layout.ROLLOUTS)
        )

    def __len__(self) -> int:
        """Number of transitions, N."""
        return int(self.manifest["num_transitions"])

    @property
    def num_rollouts(self) -> int:
        """Number of rollouts, R."""
        return int(self.manifest["num_rollouts"])

    @property
    def domain(self) -> str:
        """Name of the domain that the rollouts come from."""
        return str(self.manifest["domain"])

    @property
    def plausibility_flags(self) -> list[str]:
        """Names of the flags counted in ``rollouts["violations"]``."""
        return list(self.manifest["plausibility_flags"])

    @cached_property
    def instructions(self) -> list[InstructionRow]:
        """The instruction table; row i belongs to ``instruction_id`` i."""
        rows = []
        for line in (self.path / layout.INSTRUCTIONS).read_text(encoding="utf-8").splitlines():
            data = json.loads(line)
            rows.append(InstructionRow(data["goal"], data["instruction"], data["goal_split"]))
        return rows

    @cached_property
    def goal_splits(self) -> NDArray[np.str_]:
        """Name of the split of each rollout's instruction, shape (R,)."""
        of_instruction = np.array([row.goal_split for row in self.instructions])
        splits: NDArray[np.str_] = of_instruction[self.rollouts[names.INSTRUCTION_ID].numpy()]
        return splits

    def provenance(self, index: int) -> dict[str, Any]:
        """How rollout ``index`` was made; empty for most real ones."""
        with (self.path / layout.PROVENANCE).open("rb") as file:
            file.seek(int(self.rollouts["provenance_start"][index]))
            return dict(json.loads(file.readline()))

    def rollout(self, index: int) -> Rollout:
        """Copy one rollout into memory.

        Args:
            index: Its row, in [0, R).
        """
        row = self.rollouts[index]
        start = int(row["start"])
        steps = self.transitions[start : start + int(row["length"])]
        instruction = self.instructions[int(row[names.INSTRUCTION_ID])]
        observations = torch.cat([steps[names.OBSERVATION], steps[names.NEXT_OBSERVATION][-1:]])
        return Rollout(
            goal=instruction.goal,
            instruction=instruction.instruction,
            goal_split=instruction.goal_split,
            source=Source(int(row[names.SOURCE])),
            observations=observations.numpy(),
            actions=steps[names.ACTION].numpy().copy(),
            rewards=steps[names.REWARD].numpy().copy(),
            terminated=steps[names.TERMINATED].numpy().copy(),
            truncated=steps[names.TRUNCATED].numpy().copy(),
            is_success=bool(row["is_success"]),
            violations={flag: int(row["violations", flag]) for flag in self.plausibility_flags},
            provenance=self.provenance(index),
        )


def is_finished_store(path: str | Path) -> bool:
    """Whether a store was finished in this folder; says nothing about damage since."""
    return (Path(path) / layout.MANIFEST).is_file()


def _read_manifest(path: Path) -> bytes:
    if is_finished_store(path):
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


def _parse_manifest(path: Path, content: bytes) -> dict[str, Any]:
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


def _manifest_problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    if manifest["schema_version"] not in layout.READABLE_VERSIONS:
        readable = " and ".join(map(str, layout.READABLE_VERSIONS))
        yield f"schema_version: {manifest['schema_version']}, this kalm reads {readable}"
    for key in ("num_rollouts", "num_transitions", "observation_size"):
        if not isinstance(manifest[key], int) or manifest[key] < 1:
            yield f"{key}: {manifest[key]!r}, expected a positive integer"
    if not isinstance(manifest["action"]["size"], int) or not isinstance(manifest["action"]["is_discrete"], bool):
        yield f"action: {manifest['action']!r}, expected is_discrete (true or false) and size (an integer)"
    for flag in manifest["plausibility_flags"]:
        layout.check_name("plausibility flag", flag)
    for file in manifest["files"]:
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            yield f"files: {file!r} leads out of the store"
    _ = manifest["domain"]


def _file_problems(
    path: Path,
    manifest: Mapping[str, Any],
    columns: Mapping[str, Mapping[layout.Key, layout.Column]],
    verify: bool,
) -> list[str]:
    expected = {layout.INSTRUCTIONS: None, layout.PROVENANCE: None} | {
        layout.column_file(table, key): column.row_bytes * manifest[f"num_{table}"]
        for table, keys in columns.items()
        for key, column in keys.items()
    }
    problems = []
    for name, size in expected.items():
        listed = manifest["files"].get(name)
        if listed is None:
            problems.append(f"{name}: not listed in {layout.MANIFEST}")
        elif size is not None and listed["bytes"] != size:
            problems.append(f"{name}: listed with {listed['bytes']} bytes, {size} would fit the counts")
    for name, listed in manifest["files"].items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != listed["bytes"]:
            problems.append(f"{name}: {'missing' if found is None else f'{found} bytes'}, expected {listed['bytes']}")
        elif verify and file_sha256(file) != listed["sha256"]:
            problems.append(f"{name}: its content changed since it was written (SHA-256 differs)")
    return problems


def _map_columns(path: Path, table: str, columns: Mapping[layout.Key, layout.Column], num_rows: int) -> TensorDict:
    result = TensorDict(batch_size=[num_rows])
    for key, column in columns.items():
        size = num_rows * column.row_bytes // column.dtype.itemsize
        # Not shared: pages are read from the file as they are touched, writes stay in this process.
        flat = torch.from_file(str(path / layout.column_file(table, key)), shared=False, size=size, dtype=column.dtype)
        result[key] = flat.view(num_rows, *column.shape)
    return result.lock_()
