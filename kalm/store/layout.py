"""What lies where in a rollout store: file names, columns and their types. Shared by its writer and its reader.

```
store/
  manifest.json          written last: a store without it is unfinished
  instructions.jsonl     row i: goal, instruction and goal split of instruction_id i
  provenance.jsonl       row r: how rollout r was made
  transitions/           flat over transitions, rollouts contiguous (``TensorDict.load_memmap`` opens it too); in a
                         store of plans also ``optimal_actions``, as its manifest says (``has_optimal_actions``)
  rollouts/              one row a rollout
  states/                only where observations are grids or texts: each that occurs, once; transitions hold its row
  actions/               only where actions are texts: each that occurs, once
  labels/<name>/         what a judge wrote about the rollouts or states (``labels.py``)
  shards/                only while unfinished: one safetensors file a shard
  unfinished.json        only while unfinished: what is being made, and the command that goes on with it
```

A table of states or actions is ``rows.memmap``, the bytes of its rows one after the other. Rows of a grid all have the
size of ``GridObservation.dtype``; texts are UTF-8, and ``end.memmap`` says behind which byte each ends.

Shape letters: N transitions, R rollouts, O numbers in an observation, A numbers in a continuous action.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kalm.core import names
from kalm.core.errors import DataError
from kalm.core.specs import GridObservation, Spec, TextAction, TextObservation, VectorAction, VectorObservation

SCHEMA_VERSION = 3
# The first kept the goal split of every row as a number too; the first two kept verdicts among the rollouts' columns.
READABLE_VERSIONS = (1, 2, 3)
MANIFEST = "manifest.json"
INSTRUCTIONS = "instructions.jsonl"
PROVENANCE = "provenance.jsonl"
TRANSITIONS = "transitions"
ROLLOUTS = "rollouts"
STATES = "states"
ACTIONS = "actions"
LABELS = "labels"
SHARDS = "shards"
UNFINISHED = "unfinished.json"

# The files of a table in which each row stands once.
ROWS_FILE = "rows.memmap"
END_FILE = "end.memmap"

Key = str | tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """Type of one column: ``dtype``, and the shape of one row."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


# Folder of a table -> its columns.
Tables = Mapping[str, Mapping[Key, Column]]


def transition_columns(spec: Spec, has_optimal_actions: bool = False) -> dict[Key, Column]:
    """Columns of ``transitions/``."""
    if isinstance(spec.observation, VectorObservation):
        observation = Column(torch.float32, (spec.observation.size,))
        before, after = (names.OBSERVATION, observation), (names.NEXT_OBSERVATION, observation)
    else:
        before, after = (names.STATE, Column(torch.int32)), (names.NEXT_STATE, Column(torch.int32))
    is_vector = isinstance(spec.action, VectorAction)
    optimal: dict[Key, Column] = {}
    if has_optimal_actions:
        optimal[names.OPTIMAL_ACTIONS] = Column(torch.bool, (spec.action_size,))
    return {
        before[0]: before[1],
        names.ACTION: Column(torch.float32, (spec.action_size,)) if is_vector else Column(torch.int64),
        after[0]: after[1],
        names.REWARD: Column(torch.float32),
        names.TERMINATED: Column(torch.bool),
        names.TRUNCATED: Column(torch.bool),
        names.ROLLOUT_ID: Column(torch.int32),
        names.STEP: Column(torch.int16),
        names.INSTRUCTION_ID: Column(torch.int32),
        names.SOURCE: Column(torch.uint8),
        **optimal,
    }


def rollout_columns(verdicts_of: Iterable[str] | None = None) -> dict[Key, Column]:
    """Columns of ``rollouts/``; ``start`` is the row of a rollout's first transition.

    In a store of schema version 1 or 2 verdicts lie here too: ``verdicts_of`` has its plausibility flags.
    """
    columns: dict[Key, Column] = {
        "start": Column(torch.int64),
        "length": Column(torch.int32),
        names.INSTRUCTION_ID: Column(torch.int32),
        names.SOURCE: Column(torch.uint8),
        "provenance_start": Column(torch.int64),
    }
    if verdicts_of is not None:
        columns["is_success"] = Column(torch.bool)
        columns |= {("violations", flag): Column(torch.int32) for flag in verdicts_of}
    return columns


def row_tables(spec: Spec) -> dict[str, int | None]:
    """Tables in which rows stand once: folder -> bytes of a row; None where rows are texts of any length."""
    tables: dict[str, int | None] = {}
    if isinstance(spec.observation, GridObservation):
        tables[STATES] = spec.observation.dtype.itemsize
    elif isinstance(spec.observation, TextObservation):
        tables[STATES] = None
    if isinstance(spec.action, TextAction):
        tables[ACTIONS] = None
    return tables


def table_files(table: str, row_bytes: int | None, num_rows: int = 0) -> dict[str, int | None]:
    """Files of such a table -> their bytes where its number of rows says them."""
    if row_bytes is not None:
        return {f"{table}/{ROWS_FILE}": row_bytes * num_rows}
    return {f"{table}/{ROWS_FILE}": None, f"{table}/{END_FILE}": 8 * num_rows}


def label_columns(is_veto: bool) -> dict[Key, Column]:
    """Columns of a label, as in ``kalm.judging.judge.Verdict``."""
    columns: dict[Key, Column] = {"met": Column(torch.bool), "score": Column(torch.float32)}
    columns["abstained"] = Column(torch.bool)
    return columns | ({"num_marked": Column(torch.int32)} if is_veto else {})


def column_file(folder: str, key: Key) -> str:
    """Path of a column inside the store, where TensorDict's own memory-mapped format has it too."""
    return "/".join((folder, *((key,) if isinstance(key, str) else key))) + ".memmap"


def map_columns(store: Path, folder: str, columns: Mapping[Key, Column], num_rows: int) -> dict[Key, Tensor]:
    """Open columns by private memory maps: pages are read as they are touched, writes stay in this process."""
    mapped: dict[Key, Tensor] = {}
    for key, column in columns.items():
        size = num_rows * column.row_bytes // column.dtype.itemsize
        flat = torch.from_file(str(store / column_file(folder, key)), shared=False, size=size, dtype=column.dtype)
        mapped[key] = flat.view(num_rows, *column.shape)
    return mapped


def spec_of_manifest(manifest: Mapping[str, Any]) -> Spec:
    """What observations and actions are, by a manifest of any schema version.

    Raises:
        DataError: If it does not say so.
    """
    if manifest["schema_version"] >= 3:
        return Spec.from_json(manifest["spec"])
    action = {**manifest["action"]}
    action["kind"] = "discrete" if action.pop("is_discrete") else "vector"
    if action["kind"] == "vector":
        del action["size"]
    observation = {"kind": "vector", "size": manifest["observation_size"]}
    return Spec.from_json({"observation": observation, "action": action})


def check_name(what: str, name: str) -> str:
    """Refuse a name that could lead out of its folder (``../../etc``), or hide in it.

    Raises:
        DataError: If ``name`` is not made of letters, digits and ``_ . = -``, beginning with a letter or digit.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,199}", name):
        raise DataError(
            f"{what} {name!r} cannot be a file name; use letters, digits and _ . = - only, and begin with a "
            "letter or a digit"
        )
    return name
