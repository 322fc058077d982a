"""Batched forms of the two functions that Meta-World's v2 rewards are made of.

Both come from dm_control: ``tolerance`` says how nearly a number lies within bounds, the Hamacher product is a soft
"and". Shapes: ... any batch shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.floating[Any]]

VALUE_AT_MARGIN = 0.1


def long_tail(x: ArrayLike, lower: float, upper: float, margin: ArrayLike) -> FloatArray:
    """1 within the bounds; outside, 1 / (9 d^2 + 1) at d margins from the nearer bound, shape (...).

    Args:
        x: What is judged, shape (...).
        lower: Lower bound.
        upper: Upper bound.
        margin: Distance at which the value has fallen to ``VALUE_AT_MARGIN``; broadcasts with ``x``.
    """
    distance = _margins_outside(x, lower, upper, margin)
    return 1.0 / (distance**2 * (1.0 / VALUE_AT_MARGIN - 1.0) + 1.0)


def gaussian(x: ArrayLike, lower: float, upper: float, margin: ArrayLike) -> FloatArray:
    """Like ``long_tail``, but falling as a Gaussian does."""
    return np.exp(np.log(VALUE_AT_MARGIN) * _margins_outside(x, lower, upper, margin) ** 2)


def soft_and(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Hamacher product a b / (a + b - a b) of numbers in [0, 1], 0 where both are 0, shape (...)."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    below = a + b - a * b
    return np.where(below > 0, a * b / np.where(below > 0, below, 1.0), 0.0)


def _margins_outside(x: ArrayLike, lower: float, upper: float, margin: ArrayLike) -> FloatArray:
    x = np.asarray(x, dtype=np.float64)
    outside = np.maximum(np.maximum(lower - x, x - upper), 0.0)
    return outside / np.maximum(np.asarray(margin, dtype=np.float64), 1e-6)
