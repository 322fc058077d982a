"""What decides the data of a run, so that a resumed run is refused other data than it began with.

Every argument of a data module's constructor counts, and every field of the objects among them, unless it is declared
not to; so a new option cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from kalm.core.durable import file_sha256
from kalm.envs.base import Domain
from kalm.language.encoder import SentenceEncoder
from kalm.store.reader import RolloutStore, is_finished_store

# Metadata of a field: what a path leads to counts, not where it lies; or the field decides nothing that is learned.
BY_CONTENT = {"by_content": True}
UNDECIDED = {"undecided": True}


def data_decisions(arguments: Mapping[str, Any], undecided: Collection[str]) -> dict[str, Any]:
    """What a constructor's arguments say about the data, as plain JSON types.

    Args:
        arguments: Every argument by its name.
        undecided: Names of those that decide nothing that is learned, such as what a run is evaluated on.

    Returns:
        Name -> value, with the fields of data classes as ``name.field``.
    """
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in undecided:
            continue
        if is_dataclass(value) and not isinstance(value, type):
            for part in fields(value):
                if "undecided" not in part.metadata:
                    own = getattr(value, part.name)
                    found[f"{name}.{part.name}"] = _content(own) if "by_content" in part.metadata else _plain(own)
        else:
            found[name] = _plain(value)
    return found


def _content(paths: str | Sequence[str]) -> Any:
    """Identity of what lies there: of a rollout store its fingerprint, of a file its SHA-256."""
    if not isinstance(paths, str):
        return [_content(path) for path in paths]
    return (RolloutStore(paths).fingerprint if is_finished_store(paths) else file_sha256(Path(paths)))[:12]


def _plain(value: Any) -> Any:
    if isinstance(value, Domain):
        return value.name
    if isinstance(value, SentenceEncoder):
        return value.fingerprint
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
