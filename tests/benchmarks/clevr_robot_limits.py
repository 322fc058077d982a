"""Derives the plausibility limits from real transitions.

    python -m tests.benchmarks.clevr_robot_limits

runs the expert and the random policy and prints the limits as JSON; ``plausibility.LIMITS`` holds them, rounded.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import FloatArray
from kalm.envs.clevr_robot.domain import ClevrRobot
from kalm.envs.clevr_robot.plausibility import PlausibilityLimits, travelled

# Shapes: ... any batch shape.
TAIL = 0.0005  # share of real values beyond a limit, before the margin
MARGIN = 0.05  # by which a limit is moved outwards, as a share of the range or of the limit
NUM_ROLLOUTS = 1000


def measure_limits(num_rollouts: int, seed: int) -> PlausibilityLimits:
    """Collect real transitions, under the expert and under random actions, and derive the limits from them.

    Args:
        num_rollouts: Rollouts of the expert, and as many of the random policy.
        seed: Seed of both.
    """
    rollouts = [
        rollout for action_noise in (0.0, 1.0) for rollout in ClevrRobot(action_noise).collect(num_rollouts, seed)
    ]
    return derive_limits(
        np.concatenate([rollout.observations[:-1] for rollout in rollouts]),
        np.concatenate([rollout.actions for rollout in rollouts]),
        np.concatenate([rollout.observations[1:] for rollout in rollouts]),
    )


def derive_limits(observation: FloatArray, action: NDArray[Any], next_observation: FloatArray) -> PlausibilityLimits:
    """Limits that all but about ``TAIL`` of the given real transitions keep, moved outwards by ``MARGIN``.

    Args:
        observation: Before the pushes, shape (..., 10).
        action: Shape (...).
        next_observation: After the pushes, shape (..., 10).
    """
    pushed, others = travelled(observation, action, next_observation)
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


def _range(values: FloatArray) -> tuple[float, float]:
    low, high = np.quantile(values, (TAIL, 1 - TAIL))
    margin = MARGIN * (high - low)
    return float(low - margin), float(high + margin)


if __name__ == "__main__":
    json.dump(asdict(measure_limits(NUM_ROLLOUTS, seed=0)), sys.stdout, indent=2)
    sys.stdout.write("\n")
