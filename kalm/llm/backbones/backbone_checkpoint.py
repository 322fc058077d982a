"""What a checkpoint says of the language model under it: weights that are frozen are not in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kalm.core.changes import changes
from kalm.core.errors import CheckpointError
from kalm.llm.backbones.backbone import Backbone


def add_backbone(checkpoint: dict[str, Any], backbone: Backbone) -> None:
    """Say which language model the weights belong to."""
    checkpoint["backbone"] = backbone.description


def require_same_backbone(checkpoint: Mapping[str, Any], backbone: Backbone) -> None:
    """Refuse weights that were trained on top of others.

    Raises:
        CheckpointError: If the language model, its tuning or its frozen weights differ; every difference is listed.
    """
    expected = backbone.identity
    found = {name: checkpoint["backbone"].get(name) for name in expected} if "backbone" in checkpoint else expected
    if found != expected:
        raise CheckpointError(
            f"the checkpoint is of another backbone: {'; '.join(changes(found, expected))}. Give the model and the "
            "tuning that it was trained with (frozen is the identity of the weights that it does not hold)"
        )
