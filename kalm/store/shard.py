"""One shard of a rollout store in the making: rollouts to the bytes of one safetensors file.

A shard holds the columns of ``store_layout`` under the names they have in the store, but its rollouts, transitions,
instructions and provenance are numbered from 0 in the shard; the merge renumbers them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from kalm.core import names
from kalm.core.rollout import Rollout
from kalm.store import layout

Columns = Mapping[str, Mapping[layout.Key, layout.Column]]


def encode_shard(rollouts: Sequence[Rollout], columns: Columns) -> bytes:
    """Content of a shard file.

    Args:
        rollouts: Valid rollouts, perhaps none.
        columns: The columns of each table of the store.
    """
    table: dict[bytes, int] = {}
    instruction_id = [table.setdefault(_instruction_line(rollout), len(table)) for rollout in rollouts]
    provenance = [to_json(dict(rollout.provenance)) + b"\n" for rollout in rollouts]
    length = [len(rollout) for rollout in rollouts]
    per_rollout: dict[layout.Key, Iterable[Any]] = {
        "start": _starts(length),
        "length": length,
        names.INSTRUCTION_ID: instruction_id,
        names.SOURCE: [rollout.source for rollout in rollouts],
        "is_success": [rollout.is_success for rollout in rollouts],
        "provenance_start": _starts([len(line) for line in provenance]),
    }
    for key in columns[layout.ROLLOUTS]:
        if key not in per_rollout:
            per_rollout[key] = [rollout.violations[key[-1]] for rollout in rollouts]
    per_transition: dict[layout.Key, Iterable[NDArray[Any]]] = {
        names.OBSERVATION: (rollout.observations[:-1] for rollout in rollouts),
        names.ACTION: (rollout.actions for rollout in rollouts),
        names.NEXT_OBSERVATION: (rollout.observations[1:] for rollout in rollouts),
        names.REWARD: (rollout.rewards for rollout in rollouts),
        names.TERMINATED: (rollout.terminated for rollout in rollouts),
        names.TRUNCATED: (rollout.truncated for rollout in rollouts),
        names.ROLLOUT_ID: [np.repeat(np.arange(len(rollouts)), length)],
        names.STEP: (np.arange(steps) for steps in length),
        names.INSTRUCTION_ID: [np.repeat(np.array(instruction_id, dtype=np.int64), length)],
        names.SOURCE: (np.full(len(rollout), rollout.source) for rollout in rollouts),
    }
    tensors = {}
    for key, column in columns[layout.ROLLOUTS].items():
        tensors[layout.column_file(layout.ROLLOUTS, key)] = torch.tensor(list(per_rollout[key]), dtype=column.dtype)
    for key, column in columns[layout.TRANSITIONS].items():
        tensors[layout.column_file(layout.TRANSITIONS, key)] = _concatenate(per_transition[key], column)
    tensors[layout.INSTRUCTIONS] = _bytes_tensor(b"".join(table))
    tensors[layout.PROVENANCE] = _bytes_tensor(b"".join(provenance))
    counts = {layout.ROLLOUTS: str(len(rollouts)), layout.TRANSITIONS: str(sum(length))}
    return bytes(save(tensors, metadata=counts))


def shard_counts(path: Path) -> dict[str, int]:
    """Rows of each table in a shard, without reading its columns."""
    with safe_open(path, framework="pt") as shard:
        return {key: int(value) for key, value in shard.metadata().items()}


def to_json(value: Any, indent: int | None = None) -> bytes:
    """One spelling a value: sorted keys, plain ASCII, so that equal values are equal bytes and one line each."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(value, sort_keys=True, allow_nan=False, indent=indent, separators=separators).encode("ascii")


def _instruction_line(rollout: Rollout) -> bytes:
    row = {"goal": dict(rollout.goal), "instruction": rollout.instruction, "goal_split": rollout.goal_split}
    return to_json(row) + b"\n"


def _starts(length: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(length[:-1], dtype=np.int64).tolist()] if length else []


def _concatenate(parts: Iterable[NDArray[Any]], column: layout.Column) -> Tensor:
    arrays = list(parts)
    if not arrays:
        return torch.zeros(0, *column.shape, dtype=column.dtype)
    return torch.from_numpy(np.concatenate(arrays)).to(column.dtype).contiguous()


def _bytes_tensor(content: bytes) -> Tensor:
    return torch.from_numpy(np.array(bytearray(content), dtype=np.uint8))
