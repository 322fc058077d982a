"""Random numbers for losses that draw: a pure function of seed and update, so that a resumed run goes on with them.

Shape letters: K updates a training step, S policies side by side, B batch, Z numbers of noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def update_noise(seeds: Sequence[int], updates: range, num_rows: int, size: int) -> Tensor:
    """Standard normal numbers of each policy at each update, shape (K, S * B, Z).

    Args:
        seeds: Seed of each of the S policies.
        updates: Numbers of the K updates.
        num_rows: Rows of each policy's minibatch, B.
        size: Numbers a row, Z.
    """
    if not size:
        return torch.zeros(len(updates), len(seeds) * num_rows, 0)
    draws = [
        torch.randn(num_rows, size, generator=torch.Generator().manual_seed((seed << 32) + update))
        for update in updates
        for seed in seeds
    ]
    return torch.cat(draws).view(len(updates), -1, size)
