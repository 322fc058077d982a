"""Expectile regression: learn the upper end of what was seen, without asking for what was not.

Shape letters: B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """Squared error that weighs being too low by ``expectile``, being too high by one minus it.

    At 0.5 it is half the squared error and finds the mean. Nearer to 1 it finds the best of what the data show: for a
    value that regresses on Q, the value of a good action that was recorded. This is L_2^tau, Eq. 4 of Kostrikov et
    al. 2021 (arXiv:2110.06169), whose tau is the expectile.

    Args:
        error: Target minus prediction, shape (B,).
        expectile: Which one, in (0, 1).

    Returns:
        Loss per transition, shape (B,), not reduced.
    """
    return torch.where(error > 0, expectile, 1 - expectile) * error.square()
