"""Means of what a training step recorded, overall and for each source: what is logged.

Shape letters: K updates a training step, B batch, T steps of a window where a batch has windows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kalm.core.names import Source


@torch.no_grad()
def source_means(
    per_transition: Mapping[str, Tensor],
    source: Tensor,
    padding_mask: Tensor | None = None,
    is_recorded: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Mean of each quantity over all transitions, and over those of each source that is there.

    Args:
        per_transition: Losses and measurements by name, each of shape (K, B) or (K, B, T).
        source: Source of every transition, same shape.
        padding_mask: True = real step, same shape; what is no step does not count. None if all are.
        is_recorded: For names that not every update recorded, which updates did, shape (K,); the others do not count.
    """
    if padding_mask is None:
        padding_mask = torch.ones_like(source, dtype=torch.bool)
    is_recorded = is_recorded or {}
    means = _means(per_transition, "train", padding_mask, is_recorded)
    for member in Source:
        chosen = (source == int(member)) & padding_mask
        if chosen.any():
            means |= _means(per_transition, f"train/{member.label}", chosen, is_recorded)
    return means


def _means(
    per_transition: Mapping[str, Tensor], prefix: str, chosen: Tensor, is_recorded: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    weight = chosen / chosen.sum()
    means = {
        f"{prefix}/{name}": (values * weight).sum()
        for name, values in per_transition.items()
        if name not in is_recorded
    }
    for name, updates in is_recorded.items():
        counted = chosen[updates]
        if counted.any():
            means[f"{prefix}/{name}"] = (per_transition[name][updates] * counted).sum() / counted.sum()
    return means
