"""Reads a rollout store: columns by memory map, so that a store may be larger than memory.

Shape letters: N transitions, R rollouts, S states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from kalm.core import names
from kalm.core.errors import DataError
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.core.specs import GRID, GridObservation, TextAction
from kalm.core.specs import NUMBERS as NUMBERS_PART
from kalm.judging.judge import DOMAIN_RULE
from kalm.store import layout
from kalm.store.labels import Labels, label_manifest, old_verdicts, read_labels
from kalm.store.row_tables import RowTable
from kalm.store.sealing import check_files, manifest_content, parse_manifest

# Which part of an observation a key asks for, and the column that says in which row of the state table it stands.
_IN_STATE_TABLE: dict[layout.Key, tuple[str, layout.Key]] = {
    names.OBSERVATION: (GRID, names.STATE),
    names.NEXT_OBSERVATION: (GRID, names.NEXT_STATE),
    names.NUMBERS: (NUMBERS_PART, names.STATE),
    names.NEXT_NUMBERS: (NUMBERS_PART, names.NEXT_STATE),
}


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
        spec: What observations and actions are.
        manifest_sha256: SHA-256 of the manifest, which names the SHA-256 of every file; labels name their store by it.
        transitions: Batch of N rows with the keys of ``kalm.core.names``; where states have a table, it holds
            ``state`` and ``("next", "state")`` instead of observations.
        rollouts: Batch of R rows: ``start``, ``length``, ``instruction_id`` and ``source``.
    """

    def __init__(self, path: str | Path, verify: bool = False) -> None:
        """Open a store.

        Args:
            path: Its folder.
            verify: Read every file, also of labels, whether or not it has changed since it was last looked at.

        Raises:
            DataError: If the store is missing, unfinished or malformed; every bad file is named at once.
        """
        self.path, self._verify = Path(path), verify
        content = manifest_content(self.path)
        self.manifest_sha256 = hashlib.sha256(content).hexdigest()
        self.manifest: dict[str, Any] = parse_manifest(self.path, content)
        self.spec = layout.spec_of_manifest(self.manifest)
        self._has_labels = self.manifest["schema_version"] >= 3
        columns = {
            layout.TRANSITIONS: layout.transition_columns(self.spec, self.has_optimal_actions),
            layout.ROLLOUTS: layout.rollout_columns(None if self._has_labels else self.plausibility_flags),
        }
        check_files(self.path, self.manifest, self.spec, columns, verify)
        self.transitions, self.rollouts = (self._map_columns(table, forms) for table, forms in columns.items())
        # Indexing a TensorDict costs several times what indexing its tensors does.
        self._columns: dict[layout.Key, Tensor] = dict(self.transitions.items(True, True))
        self._tables: dict[str, RowTable] = {}
        for table, row_bytes in layout.row_tables(self.spec).items():
            num_bytes = self.manifest["files"][f"{table}/{layout.ROWS_FILE}"]["bytes"]
            self._tables[table] = RowTable(self.path / table, row_bytes, self.manifest[f"num_{table}"], num_bytes)
        self._labels: dict[str, Labels] = {}
        if verify:
            for name in self._verdicts:
                self.labels(name)

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
    def has_optimal_actions(self) -> bool:
        """Whether it is a store of plans: the column ``optimal_actions`` has the best actions of every step."""
        return bool(self.manifest.get("has_optimal_actions", False))

    @property
    def num_states(self) -> int:
        """States that labels may be about, S: rows of the state table; of vectors, every next observation."""
        return int(self.manifest.get(f"num_{layout.STATES}", len(self)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest and of those of the verdicts that came with it: equal data, equal fingerprint."""
        if not self._has_labels:
            return self.manifest_sha256
        manifests = (hashlib.sha256(label_manifest(self.path, name)).digest() for name in self._verdicts)
        return hashlib.sha256(self.manifest_sha256.encode() + b"".join(manifests)).hexdigest()

    def read(self, keys: Sequence[layout.Key], rows: Tensor) -> list[Tensor]:
        """Columns of some transitions: the one way to gather them, which looks up the state table where there is one.

        Args:
            keys: Of ``kalm.core.names``. Texts are no tensors: read ``state`` and ask ``observations`` for them.
            rows: Which transitions, int64 of any shape; it is that of each column too, before the shape of one value.

        Raises:
            DataError: If the store cannot have a column.
        """
        return [self._read(key, rows) for key in keys]

    @property
    def keys(self) -> list[layout.Key]:
        """Keys of one whole transition as ``read`` gives it: observations that are tensors rather than their rows.

        What only a store of plans has, ``optimal_actions``, is to be asked for by its key.
        """
        stored = list(layout.transition_columns(self.spec))
        if not isinstance(self.spec.observation, GridObservation):
            return stored
        parts = {part for part, size in ((GRID, 1), (NUMBERS_PART, self.spec.observation.num_numbers)) if size}
        asked = [key for key, (part, _) in _IN_STATE_TABLE.items() if part in parts]
        return asked + [key for key in stored if key not in (names.STATE, names.NEXT_STATE)]

    def observations(self, states: Tensor) -> NDArray[Any]:
        """States as a ``Rollout`` has them; ``states`` are rows of the S states, int64 of any shape."""
        if layout.STATES in self._tables:
            return self._tables[layout.STATES].observations(states, self.spec.observation)
        vectors: NDArray[Any] = self._columns[names.NEXT_OBSERVATION][states].numpy()
        return vectors

    def action_texts(self, actions: Tensor) -> list[str]:
        """Texts of some values of the column ``action``, where actions are texts; shape (B,)."""
        return self._tables[layout.ACTIONS].texts(actions)

    # --- verdicts ----------------------------------------------------------------------------------------------------

    @property
    def plausibility_flags(self) -> list[str]:
        """Names of the vetoes that came with the rollouts: labels that count what is implausible."""
        return list(self.manifest["plausibility_flags"])

    @property
    def is_success(self) -> Tensor:
        """Whether each rollout's own goal was met, by the domain's rule, bool of shape (R,)."""
        return self.labels(DOMAIN_RULE).met

    def violations(self, flag: str) -> Tensor:
        """What a veto holds against each rollout: the number of its steps that it marks, int32 of shape (R,)."""
        marked = self.labels(flag).num_marked
        if marked is None:
            raise DataError(f"label {flag!r} of {self.path} is no veto; those are {', '.join(self.plausibility_flags)}")
        return marked

    def labels(self, name: str) -> Labels:
        """What a judge wrote about this store; ``domain_rule`` and ``plausibility_flags`` come with every one.

        Raises:
            DataError: If there is no such label, or it is damaged or about another store.
        """
        if name not in self._labels:
            self._labels[name] = (
                read_labels(self.path, name, self.manifest_sha256, self.num_rollouts, self._verify)
                if self._has_labels
                else old_verdicts(self.rollouts, name, self._verdicts, self.domain)
            )
        return self._labels[name]

    @property
    def _verdicts(self) -> list[str]:
        return [DOMAIN_RULE, *self.plausibility_flags]

    # --- rollouts ----------------------------------------------------------------------------------------------------

    @cached_property
    def instructions(self) -> list[InstructionRow]:
        """The instruction table; row i belongs to ``instruction_id`` i."""
        lines = (self.path / layout.INSTRUCTIONS).read_text(encoding="utf-8").splitlines()
        rows = map(json.loads, lines)
        return [InstructionRow(row["goal"], row["instruction"], row["goal_split"]) for row in rows]

    @cached_property
    def goal_splits(self) -> NDArray[np.str_]:
        """Name of the split of each rollout's instruction, shape (R,); empty for one without a goal."""
        # A rollout without a goal has the instruction -1: the last.
        of_instruction = np.array([*(row.goal_split for row in self.instructions), ""])
        splits: NDArray[np.str_] = of_instruction[self.rollouts[names.INSTRUCTION_ID].numpy()]
        return splits

    def provenance(self, index: int) -> dict[str, Any]:
        """How rollout ``index`` was made; empty for most real ones."""
        with (self.path / layout.PROVENANCE).open("rb") as file:
            file.seek(int(self.rollouts["provenance_start"][index]))
            return dict(json.loads(file.readline()))

    def rollout(self, index: int) -> Rollout:
        """Copy rollout ``index``, in [0, R), into memory."""
        row = self.rollouts[index]
        start, end = int(row["start"]), int(row["start"]) + int(row["length"])
        steps = self.transitions[start:end]
        number = int(row[names.INSTRUCTION_ID])
        instruction = self.instructions[number] if number >= 0 else InstructionRow({}, "", "")
        if layout.STATES in self._tables:
            observations = self.observations(torch.cat([steps[names.STATE], steps[names.NEXT_STATE][-1:]]))
        else:
            observations = torch.cat([steps[names.OBSERVATION], steps[names.NEXT_OBSERVATION][-1:]]).numpy()
        actions = steps[names.ACTION].numpy().copy()
        if isinstance(self.spec.action, TextAction):
            actions = np.array(self.action_texts(steps[names.ACTION]), dtype=np.str_)
        return Rollout(
            goal=instruction.goal,
            instruction=instruction.instruction,
            goal_split=instruction.goal_split,
            source=Source(int(row[names.SOURCE])),
            observations=observations,
            actions=actions,
            rewards=steps[names.REWARD].numpy().copy(),
            terminated=steps[names.TERMINATED].numpy().copy(),
            truncated=steps[names.TRUNCATED].numpy().copy(),
            is_success=bool(self.is_success[index]),
            violations={flag: int(self.violations(flag)[index]) for flag in self.plausibility_flags},
            provenance=self.provenance(index),
            optimal_actions=steps[names.OPTIMAL_ACTIONS].numpy().copy() if self.has_optimal_actions else None,
        )

    def _read(self, key: layout.Key, rows: Tensor) -> Tensor:
        if key in self._columns:
            column = self._columns[key]
            return column.index_select(0, rows.reshape(-1)).view(*rows.shape, *column.shape[1:])
        part, row_of = _IN_STATE_TABLE.get(key, ("", ""))
        found = self.observations(self._columns[row_of][rows]) if row_of in self._columns else np.array("")
        if part == GRID and found.dtype.kind in "iu":
            return torch.from_numpy(found)
        if part not in (found.dtype.names or ()):
            raise DataError(f"the observations of {self.path} ({self.spec.observation}) have no {key!r}")
        return torch.from_numpy(np.ascontiguousarray(found[part]))

    def _map_columns(self, table: str, columns: Mapping[layout.Key, layout.Column]) -> TensorDict:
        num_rows = self.manifest[f"num_{table}"]
        rows = TensorDict(batch_size=[num_rows])
        for key, values in layout.map_columns(self.path, table, columns, num_rows).items():
            rows[key] = values
        return rows.lock_()


def is_finished_store(path: str | Path) -> bool:
    """Whether a store was finished in this folder; says nothing about damage since."""
    return (Path(path) / layout.MANIFEST).is_file()
