"""What the updates of a training step recorded, stacked; updates need not record the same.

Shape letters: K updates a training step, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def stack_recorded(rows: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stack losses and measurements by name.

    Args:
        rows: What each of K updates recorded, one number a transition, shape (B,) or of a window's steps (B, T).

    Returns:
        The stacks, shape (K, ...), with zeros where an update recorded nothing of that name; and, for the names that
        some update left out, which updates did not, shape (K,).
    """
    stacks: dict[str, Tensor] = {}
    is_recorded: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        there = [row.get(name) for row in rows]
        zeros = torch.zeros_like(next(values for values in there if values is not None))
        stacks[name] = torch.stack([zeros if values is None else values for values in there])
        if any(values is None for values in there):
            is_recorded[name] = torch.tensor([values is not None for values in there], device=zeros.device)
    return stacks, is_recorded
