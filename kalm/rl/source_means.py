"""Means of what a training step recorded, overall and for each source: what is logged.

Shape letters: K updates a training step, B batch, T steps of a window where a batch has windows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kalm.types import Source


@torch.no_grad()
def source_means(
    per_transition: Mapping[str, Tensor], source: Tensor, padding_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Mean of each quantity over all transitions, and over those of each source that is there.

    Args:
        per_transition: Losses and measurements by name, each of shape (K, B) or (K, B, T).
        source: Source of every transition, same shape.
        padding_mask: True = real step, same shape; what is no step does not count. None if all are.
    """
    if padding_mask is None:
        padding_mask = torch.ones_like(source, dtype=torch.bool)
    means = _means(per_transition, "train", padding_mask)
    for member in Source:
        chosen = (source == int(member)) & padding_mask
        if chosen.any():
            means |= _means(per_transition, f"train/{member.label}", chosen)
    return means


def _means(per_transition: Mapping[str, Tensor], prefix: str, chosen: Tensor) -> dict[str, Tensor]:
    weight = chosen / chosen.sum()
    return {f"{prefix}/{name}": (values * weight).sum() for name, values in per_transition.items()}
