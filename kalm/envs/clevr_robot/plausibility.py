"""Which transitions the real world could not have made: off the table, or farther than any push carries a ball.

The limits are not guessed: ``derive_limits`` computes them from real transitions, and ``LIMITS`` keeps what it gave,
rounded, for those of ``python -m kalm.envs.clevr_robot.plausibility``, which runs the expert and the random policy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.envs.clevr_robot.layout import NUM_BALLS, PUSH_DIRECTIONS

# Shapes: ... any batch shape.
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.floating[Any]]

TAIL = 0.0005  # share of real values beyond a limit, before the margin
MARGIN = 0.05  # by which a limit is moved outwards, as a share of the range or of the limit


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


LIMITS = PlausibilityLimits(min_x=-0.518, max_x=0.518, min_y=-0.208, max_y=0.608, max_pushed=0.343, max_others=0.318)


def derive_limits(observation: FloatArray, action: NDArray[Any], next_observation: FloatArray) -> PlausibilityLimits:
    """Limits that all but about ``TAIL`` of the given real transitions keep, moved outwards by ``MARGIN``.

    Args:
        observation: Before the pushes, shape (..., 10).
        action: Shape (...).
        next_observation: After the pushes, shape (..., 10).
    """
    pushed, others = _travelled(observation, action, next_observation)
    min_x, max_x = _range(next_observation[..., 0::2])
    min_y, max_y = _range(next_observation[..., 1::2])
    return PlausibilityLimits(
        min_x=min_x,
        max_x=max_x,
        min_y=min_y,
        max_y=max_y,
        max_pushed=float(np.quantile(pushed, 1 - TAIL) * (1 + MARGIN)),
        max_others=float(np.quantile(others, 1 - TAIL) * (1 + MARGIN)),
    )


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
    pushed, others = _travelled(observation, action, next_observation)
    return {
        "out_of_workbench": np.asarray(outside.any(axis=-1)),
        "beyond_dynamics_limits": np.asarray((pushed > limits.max_pushed) | (others > limits.max_others)),
    }


def _travelled(
    observation: FloatArray, action: NDArray[Any], next_observation: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """How far the pushed ball went, and the farthest of the others, each shape (...)."""
    moved = np.asarray(next_observation) - np.asarray(observation)
    distance = np.hypot(moved[..., 0::2], moved[..., 1::2])
    is_pushed = np.arange(NUM_BALLS) == np.asarray(action)[..., None] // len(PUSH_DIRECTIONS)
    return (distance * is_pushed).sum(axis=-1), (distance * ~is_pushed).max(axis=-1)


def _range(values: FloatArray) -> tuple[float, float]:
    low, high = np.quantile(values, (TAIL, 1 - TAIL))
    margin = MARGIN * (high - low)
    return float(low - margin), float(high + margin)


def measure_limits(num_rollouts: int, seed: int) -> PlausibilityLimits:
    """Collect real transitions, under the expert and under random actions, and derive the limits from them.

    Args:
        num_rollouts: Rollouts of the expert, and as many of the random policy.
        seed: Seed of both.
    """
    from kalm.envs.clevr_robot.domain import ClevrRobot  # the domain itself imports this module

    rollouts = [
        rollout for action_noise in (0.0, 1.0) for rollout in ClevrRobot(action_noise).collect(num_rollouts, seed)
    ]
    return derive_limits(
        np.concatenate([rollout.observations[:-1] for rollout in rollouts]),
        np.concatenate([rollout.actions for rollout in rollouts]),
        np.concatenate([rollout.observations[1:] for rollout in rollouts]),
    )


if __name__ == "__main__":
    import json
    import sys

    json.dump(asdict(measure_limits(num_rollouts=1000, seed=0)), sys.stdout, indent=2)
