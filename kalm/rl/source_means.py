"""Means of what a training step recorded, overall and for each source: what is logged.

Shape letters: K updates a training step, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kalm.types import Source


@torch.no_grad()
def source_means(per_transition: Mapping[str, Tensor], source: Tensor) -> dict[str, Tensor]:
    """Mean of each quantity over all transitions, and over those of each source that is there.

    Args:
        per_transition: Losses and measurements by name, each of shape (K, B).
        source: Source of every transition, shape (K, B).
    """
    means = {f"train/{name}": values.mean() for name, values in per_transition.items()}
    for member in Source:
        chosen = (source == int(member)).float()
        count = chosen.sum()
        if count > 0:
            for name, values in per_transition.items():
                means[f"train/{member.label}/{name}"] = (values * chosen).sum() / count
    return means
