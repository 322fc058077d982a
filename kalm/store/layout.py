"""What lies where in a rollout store: file names, columns and their types. Shared by its writer and its reader.

```
store/
  manifest.json          written last: a store without it is unfinished
  instructions.jsonl     row i: goal, instruction and goal split of instruction_id i
  provenance.jsonl       row r: how rollout r was made
  transitions/           flat over transitions, rollouts contiguous (``TensorDict.load_memmap`` opens it too)
  rollouts/              one row a rollout
  shards/                only while unfinished: one safetensors file a shard
  unfinished.json        only while unfinished: what is being made, and the command that goes on with it
```

Shape letters: N transitions, R rollouts, O numbers in an observation, A numbers in a continuous action.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from kalm.core import names
from kalm.core.errors import DataError

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)  # the first kept the goal split of every row as a number too
MANIFEST = "manifest.json"
INSTRUCTIONS = "instructions.jsonl"
PROVENANCE = "provenance.jsonl"
TRANSITIONS = "transitions"
ROLLOUTS = "rollouts"
SHARDS = "shards"
UNFINISHED = "unfinished.json"

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


def transition_columns(spaces: Mapping[str, Any]) -> dict[Key, Column]:
    """Columns of ``transitions/`` for spaces as ``describe_spaces`` gives them."""
    observation = Column(torch.float32, (spaces["observation_size"],))
    is_discrete = spaces["action"]["is_discrete"]
    return {
        names.OBSERVATION: observation,
        names.ACTION: Column(torch.int64) if is_discrete else Column(torch.float32, (spaces["action"]["size"],)),
        names.NEXT_OBSERVATION: observation,
        names.REWARD: Column(torch.float32),
        names.TERMINATED: Column(torch.bool),
        names.TRUNCATED: Column(torch.bool),
        names.ROLLOUT_ID: Column(torch.int32),
        names.STEP: Column(torch.int16),
        names.INSTRUCTION_ID: Column(torch.int32),
        names.SOURCE: Column(torch.uint8),
    }


def rollout_columns(plausibility_flags: Iterable[str]) -> dict[Key, Column]:
    """Columns of ``rollouts/``; ``start`` is the row of a rollout's first transition."""
    return {
        "start": Column(torch.int64),
        "length": Column(torch.int32),
        names.INSTRUCTION_ID: Column(torch.int32),
        names.SOURCE: Column(torch.uint8),
        "is_success": Column(torch.bool),
        "provenance_start": Column(torch.int64),
        **{("violations", flag): Column(torch.int32) for flag in plausibility_flags},
    }


def column_file(folder: str, key: Key) -> str:
    """Path of a column inside the store, where TensorDict's own memory-mapped format has it too."""
    return "/".join((folder, *((key,) if isinstance(key, str) else key))) + ".memmap"


def describe_spaces(observation_space: gym.spaces.Box, action_space: gym.spaces.Space[Any]) -> dict[str, Any]:
    """Spaces as plain JSON types, for the manifest.

    Raises:
        DataError: If observations are no flat box, or actions neither ``Discrete`` nor a flat box.
    """
    if not isinstance(observation_space, gym.spaces.Box) or len(observation_space.shape) != 1:
        raise DataError(f"observation space {observation_space} is not a box of shape (O,); flatten the observation")
    if isinstance(action_space, gym.spaces.Discrete) and action_space.start == 0:
        action = {"is_discrete": True, "size": int(action_space.n)}
    elif isinstance(action_space, gym.spaces.Box) and len(action_space.shape) == 1:
        low, high = (np.broadcast_to(bound, action_space.shape) for bound in (action_space.low, action_space.high))
        if not np.isfinite([low, high]).all():
            raise DataError(f"action space {action_space} has no finite bounds; scale actions into [-1, 1]")
        action = {"is_discrete": False, "size": action_space.shape[0], "low": low.tolist(), "high": high.tolist()}
    else:
        raise DataError(f"action space {action_space} is neither Discrete(A) from 0 nor a box of shape (A,)")
    return {"observation_size": observation_space.shape[0], "action": action}


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
