"""Whose weights a checkpoint holds: algorithm, sizes and number of seeds beside the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kalm.core.changes import changes
from kalm.core.errors import CheckpointError

POLICY = "kalm_policy"


def add_policy(checkpoint: dict[str, Any], identity: dict[str, Any]) -> None:
    """Say which policy the weights belong to."""
    checkpoint[POLICY] = identity


def require_same_policy(checkpoint: Mapping[str, Any], identity: dict[str, Any]) -> None:
    """Refuse another policy's weights before torch lists every mismatched tensor.

    Raises:
        CheckpointError: If the algorithm, a size or the number of seeds differs.
    """
    found = checkpoint.get(POLICY)
    if found != identity:
        what = "another policy than the configuration asks for" if found else "no policy of kalm"
        raise CheckpointError(
            f"the checkpoint holds {what} ({'; '.join(changes(found or {}, identity))}); name the checkpoint of that "
            "policy, or the configuration that it was made with"
        )
