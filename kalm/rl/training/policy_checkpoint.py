"""What a checkpoint says of its policy beside the weights: whose they are, and their averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kalm.core.changes import changes
from kalm.core.errors import CheckpointError
from kalm.rl.training.weight_average import WeightAverage

POLICY = "kalm_policy"
AVERAGE = "kalm_average"


def add_policy(checkpoint: dict[str, Any], identity: dict[str, Any], average: WeightAverage | None) -> None:
    """Say which policy the weights belong to; add the averaged ones."""
    checkpoint[POLICY] = identity
    if average is not None:
        checkpoint[AVERAGE] = dict(average.tensors)


def take_policy(checkpoint: Mapping[str, Any], identity: dict[str, Any], average: WeightAverage | None) -> None:
    """Refuse another policy's weights before torch lists every mismatched tensor; take the averaged ones.

    Raises:
        CheckpointError: If the algorithm, a size or the number of seeds differs, or averages are missing.
    """
    found = checkpoint.get(POLICY)
    if found != identity:
        what = "another policy than the configuration asks for" if found else "no policy of kalm"
        raise CheckpointError(
            f"the checkpoint holds {what} ({'; '.join(changes(found or {}, identity))}); name the checkpoint of that "
            "policy, or the configuration that it was made with"
        )
    if average is None:
        return
    if AVERAGE not in checkpoint:
        raise CheckpointError(
            f"ema_rate is {average.rate}, but the checkpoint holds no averaged weights: it was trained with ema_rate "
            "null; set that"
        )
    average.tensors = dict(checkpoint[AVERAGE])
