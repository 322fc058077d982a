"""Writes a rollout store: whole shards while rollouts come in, one merge at the end.

A shard is one file that is complete or absent, so a killed run loses at most the shard it was on and goes on with
the next. The merge reads one shard at a time. Equal rollouts in equal order give equal files, however they were cut
into shards and however often the run was killed.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from safetensors import safe_open
from tensordict import TensorDict
from torch import Tensor

from kalm.core import names
from kalm.core.durable import HashedFile, file_sha256, sync_folder, write_durably
from kalm.core.errors import DataError
from kalm.core.rollout import Rollout
from kalm.core.validation import raise_problems, validate_rollout
from kalm.store import layout
from kalm.store.reader import RolloutStore, is_finished_store
from kalm.store.shard import encode_shard, shard_counts, to_json


class RolloutStoreWriter:
    """Appends shards of rollouts to a folder and finishes it into a ``RolloutStore``."""

    def __init__(
        self,
        path: str | Path,
        domain: str,
        observation_space: gym.spaces.Box,
        action_space: gym.spaces.Discrete | gym.spaces.Box,
        plausibility_flags: Sequence[str],
        made_by: Mapping[str, Any],
        command: str | None = None,
    ) -> None:
        """Begin a store, or go on with one that was begun with the same settings.

        Args:
            path: Folder of the store.
            domain: Name of the domain that the rollouts come from.
            observation_space: Box of shape (O,).
            action_space: ``Discrete(A)`` or a box of shape (A,).
            plausibility_flags: Names of the flags that every rollout's ``violations`` holds.
            made_by: Plain JSON types that say how the rollouts are made; goes into the manifest, so nothing that
                differs between two equal runs (times, hosts) belongs here.
            command: Command line that goes on with the store when it is found unfinished; None takes that of this
                process.

        Raises:
            DataError: If the store is finished already, or was begun with other settings.
        """
        self.path = Path(path)
        self._spaces = (observation_space, action_space)
        self._flags = tuple(layout.check_name("plausibility flag", flag) for flag in plausibility_flags)
        self._description = {
            "schema_version": layout.SCHEMA_VERSION,
            "domain": layout.check_name("domain", domain),
            **layout.describe_spaces(observation_space, action_space),
            "plausibility_flags": list(self._flags),
            "made_by": json.loads(json.dumps(dict(made_by))),
        }
        self._columns = {
            layout.TRANSITIONS: layout.transition_columns(self._description),
            layout.ROLLOUTS: layout.rollout_columns(self._flags),
        }
        if is_finished_store(self.path):
            raise DataError(f"rollout store {self.path} is finished; delete the folder to make it anew")
        self._begin(shlex.join(sys.orig_argv) if command is None else command)

    @property
    def finished_shards(self) -> set[str]:
        """Names of the shards that are complete on disk."""
        return {path.stem for path in self._shard_files()}

    def append(self, shard: str, rollouts: Sequence[Rollout]) -> None:
        """Store a shard, whole or not at all.

        Args:
            shard: Its name; shards are merged in the order of their names, so pad numbers with zeros.
            rollouts: Its rollouts; may be empty, so that a shard whose every rollout was rejected counts as done.

        Raises:
            DataError: If any rollout is malformed (every problem of every rollout is listed), or the shard exists.
        """
        name = layout.check_name("shard", shard)
        if name in self.finished_shards:
            raise DataError(f"shard {name!r} is in {self.path} already; ask finished_shards before making one")
        problems = (
            f"rollout {index}: {problem}"
            for index, rollout in enumerate(rollouts)
            for problem in [*validate_rollout(rollout, *self._spaces), *self._flag_problems(rollout)]
        )
        raise_problems(f"shard {name!r} of {self.path} cannot be stored", problems, "Mend what makes these rollouts.")
        write_durably(self.path / layout.SHARDS / f"{name}.safetensors", encode_shard(rollouts, self._columns))

    def finish(self) -> RolloutStore:
        """Merge the shards, in the order of their names, and seal the store.

        Raises:
            DataError: If there is no rollout in any shard.
        """
        shards = sorted(self._shard_files())
        totals = {table: sum(shard_counts(shard)[table] for shard in shards) for table in self._columns}
        if not totals[layout.ROLLOUTS]:
            raise DataError(f"no rollout was stored in {self.path}; a store needs at least one")
        for table, columns in self._columns.items():
            shutil.rmtree(self.path / table, ignore_errors=True)
            _allocate(self.path / table, columns, totals[table])
        digests = self._merge(shards)
        for relative in [f"{path.relative_to(self.path)}" for path in sorted(self.path.glob("*/**/meta.json"))]:
            digests[relative] = file_sha256(self.path / relative)
        self._seal(totals, digests)
        return RolloutStore(self.path)

    def _begin(self, command: str) -> None:
        header = self.path / layout.UNFINISHED
        (self.path / layout.SHARDS).mkdir(parents=True, exist_ok=True)
        if header.is_file():
            begun = json.loads(header.read_text(encoding="utf-8"))["description"]
            changed = [
                f"{key}: {begun.get(key)!r} -> {value!r}"
                for key, value in self._description.items()
                if begun.get(key) != value
            ]
            raise_problems(
                f"the unfinished rollout store {self.path} was begun with other settings",
                changed,
                "Use the first settings to finish it, or delete the folder.",
            )
        for leftover in (*self.path.glob(".*.tmp"), *(self.path / layout.SHARDS).glob(".*.tmp")):
            leftover.unlink()
        write_durably(header, to_json({"description": self._description, "command": command}))

    def _shard_files(self) -> list[Path]:
        return list((self.path / layout.SHARDS).glob("[!.]*.safetensors"))

    def _flag_problems(self, rollout: Rollout) -> list[str]:
        if isinstance(rollout.violations, Mapping) and set(rollout.violations) == set(self._flags):
            return []
        return [f"violations: {rollout.violations!r}, expected a count for each of {', '.join(self._flags) or 'none'}"]

    def _merge(self, shards: Sequence[Path]) -> dict[str, str]:
        """Append every shard to the store's files; returns the SHA-256 of each file."""
        offsets = dict.fromkeys((layout.ROLLOUTS, layout.TRANSITIONS, layout.PROVENANCE), 0)
        table: dict[bytes, int] = {}
        names = [layout.column_file(t, key) for t, columns in self._columns.items() for key in columns]
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(HashedFile(self.path / name))
                for name in (*names, layout.INSTRUCTIONS, layout.PROVENANCE)
            }
            for shard in shards:
                with safe_open(shard, framework="pt") as tensors:
                    lines = _lines(tensors.get_tensor(layout.INSTRUCTIONS))
                    new = [line for line in lines if line not in table]
                    table |= {line: len(table) + index for index, line in enumerate(new)}
                    files[layout.INSTRUCTIONS].write(b"".join(new))
                    instruction_id = torch.tensor([table[line] for line in lines], dtype=torch.int32)
                    for name in names:
                        values = _renumber(name, tensors.get_tensor(name), instruction_id, offsets)
                        files[name].write(values.numpy().tobytes())
                    provenance = tensors.get_tensor(layout.PROVENANCE).numpy().tobytes()
                    files[layout.PROVENANCE].write(provenance)
                counts = shard_counts(shard)
                offsets = {key: offsets[key] + counts.get(key, len(provenance)) for key in offsets}
            return {name: file.close() for name, file in files.items()}

    def _seal(self, totals: Mapping[str, int], digests: Mapping[str, str]) -> None:
        row_bytes = sum(column.row_bytes for column in self._columns[layout.TRANSITIONS].values())
        manifest = {
            **self._description,
            "num_rollouts": totals[layout.ROLLOUTS],
            "num_transitions": totals[layout.TRANSITIONS],
            "bytes_per_transition": row_bytes,
            "files": {
                name: {"bytes": (self.path / name).stat().st_size, "sha256": digest}
                for name, digest in sorted(digests.items())
            },
        }
        for folder in {(self.path / name).parent for name in digests}:
            sync_folder(folder)
        write_durably(self.path / layout.MANIFEST, to_json(manifest, indent=1) + b"\n")
        shutil.rmtree(self.path / layout.SHARDS)
        (self.path / layout.UNFINISHED).unlink()


def _allocate(folder: Path, columns: Mapping[layout.Key, layout.Column], num_rows: int) -> None:
    """Make the files that TensorDict's memory-mapped format needs; their content comes with the merge."""
    rows = TensorDict(batch_size=[num_rows])
    for key, column in columns.items():
        rows[key] = torch.zeros((), dtype=column.dtype).expand(num_rows, *column.shape)
    rows.memmap_like(str(folder))


def _renumber(name: str, values: Tensor, instruction_id: Tensor, offsets: Mapping[str, int]) -> Tensor:
    """Turn a shard's own numbering into the store's."""
    column = name.removesuffix(".memmap").split("/", 1)[1]
    if column == names.INSTRUCTION_ID:
        return instruction_id[values.long()]
    table = {
        names.ROLLOUT_ID: layout.ROLLOUTS,
        "start": layout.TRANSITIONS,
        "provenance_start": layout.PROVENANCE,
    }.get(column)
    return values if table is None else values + offsets[table]


def _lines(content: Tensor) -> list[bytes]:
    return content.numpy().tobytes().splitlines(keepends=True)
