"""Which transitions the real world could not have made: off the table, or farther than any push carries a ball.

The limits are not guessed: ``LIMITS`` keeps, rounded, what ``python -m tests.benchmarks.clevr_robot_limits`` derives
from real transitions of the expert and of the random policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kalm.core.goal import Array, BoolArray, FloatArray
from kalm.envs.clevr_robot.layout import NUM_BALLS, PUSH_DIRECTIONS


@dataclass(frozen=True)
class PlausibilityLimits:
    """Extremes of real transitions: of a ball's centre after a push, and of the way that a push carries one."""

    min_x: float
    max_x: float
    min_y: float
    max_y: float
    max_pushed: float  # the ball that the push is meant for
    max_others: float


LIMITS = PlausibilityLimits(min_x=-0.518, max_x=0.518, min_y=-0.208, max_y=0.608, max_pushed=0.343, max_others=0.308)


def violations(observation: FloatArray, action: Array, next_observation: FloatArray) -> dict[str, BoolArray]:
    """Mark the transitions that break a limit.

    Returns:
        ``out_of_workbench`` (a ball lies off the workbench afterwards) and ``beyond_dynamics_limits`` (a ball went
        farther than a push carries it), boolean, shape (...).
    """
    x, y = next_observation[..., 0::2], next_observation[..., 1::2]
    outside = (x < LIMITS.min_x) | (x > LIMITS.max_x) | (y < LIMITS.min_y) | (y > LIMITS.max_y)
    pushed, others = travelled(observation, action, next_observation)
    return {
        "out_of_workbench": np.asarray(outside.any(axis=-1)),
        "beyond_dynamics_limits": np.asarray((pushed > LIMITS.max_pushed) | (others > LIMITS.max_others)),
    }


def travelled(observation: FloatArray, action: Array, next_observation: FloatArray) -> tuple[FloatArray, FloatArray]:
    """How far the pushed ball went, and the farthest of the others, each shape (...)."""
    moved = np.asarray(next_observation) - np.asarray(observation)
    distance = np.hypot(moved[..., 0::2], moved[..., 1::2])
    is_pushed = np.arange(NUM_BALLS) == np.asarray(action)[..., None] // len(PUSH_DIRECTIONS)
    return (distance * is_pushed).sum(axis=-1), (distance * ~is_pushed).max(axis=-1)
