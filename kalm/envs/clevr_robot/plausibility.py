"""Which transitions the real world could not have made: off the table, or farther than any push carries a ball.

The limits are not guessed: ``LIMITS`` keeps, rounded, what ``python -m tests.benchmarks.clevr_robot_limits`` derives
from real transitions of the expert and of the random policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.envs.clevr_robot.layout import NUM_BALLS, PUSH_DIRECTIONS

# Shapes: ... any batch shape.
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class PlausibilityLimits:
    """Extremes of real transitions.

    Attributes:
        min_x: Least x of any ball's centre after a push.
        max_x: Greatest x.
        min_y: Least y.
        max_y: Greatest y.
        max_pushed: How far one push carries the ball it is meant for.
        max_others: How far it carries any other ball.
    """

    min_x: float
    max_x: float
    min_y: float
    max_y: float
    max_pushed: float
    max_others: float


LIMITS = PlausibilityLimits(min_x=-0.518, max_x=0.518, min_y=-0.208, max_y=0.608, max_pushed=0.343, max_others=0.308)


def violations(
    observation: FloatArray,
    action: NDArray[Any],
    next_observation: FloatArray,
    limits: PlausibilityLimits = LIMITS,
) -> dict[str, BoolArray]:
    """Mark the transitions that break a limit.

    Args:
        observation: Before the pushes, shape (..., 10).
        action: Shape (...).
        next_observation: After the pushes, shape (..., 10).
        limits: What real transitions keep to.

    Returns:
        ``out_of_workbench`` (a ball lies off the workbench afterwards) and ``beyond_dynamics_limits`` (a ball went
        farther than a push carries it), boolean, shape (...).
    """
    x, y = next_observation[..., 0::2], next_observation[..., 1::2]
    outside = (x < limits.min_x) | (x > limits.max_x) | (y < limits.min_y) | (y > limits.max_y)
    pushed, others = travelled(observation, action, next_observation)
    return {
        "out_of_workbench": np.asarray(outside.any(axis=-1)),
        "beyond_dynamics_limits": np.asarray((pushed > limits.max_pushed) | (others > limits.max_others)),
    }


def travelled(
    observation: FloatArray, action: NDArray[Any], next_observation: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """How far the pushed ball went, and the farthest of the others, each shape (...)."""
    moved = np.asarray(next_observation) - np.asarray(observation)
    distance = np.hypot(moved[..., 0::2], moved[..., 1::2])
    is_pushed = np.arange(NUM_BALLS) == np.asarray(action)[..., None] // len(PUSH_DIRECTIONS)
    return (distance * is_pushed).sum(axis=-1), (distance * ~is_pushed).max(axis=-1)
