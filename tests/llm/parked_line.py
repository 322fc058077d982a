"""The line with more numbers in an observation than move: what a domain with absent and resting objects looks like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import BoolArray, FloatArray
from kalm.core.rollout import Rollout
from tests.line_domain import LineDomain, step

ABSENT, CONSTANT, PARKED, TREMBLING = 1, 2, 3, 4  # columns of an observation; 0 is the walker's position


class ParkedLineDomain(LineDomain):
    """Behind the position: a 0 of what is not there, a constant, a place that only a start decides, and one at rest."""

    name: ClassVar[str] = "parked_line"
    observation_space = gym.spaces.Box(-1.0, 1.0, (5,), np.float32)

    def plausibility(
        self, observation: FloatArray, action: NDArray[Any], next_observation: FloatArray
    ) -> dict[str, BoolArray]:
        """``jumped``: not where the action leads."""
        return super().plausibility(observation[..., :1], action, next_observation[..., :1])

    def collect(self, num_rollouts: int, seed: int, first: int = 0, mistake_rate: float = 0.2) -> Iterator[Rollout]:
        """The line's rollouts with the other numbers beside them."""
        for index, rollout in enumerate(super().collect(num_rollouts, seed, first, mistake_rate), start=first):
            rng = np.random.default_rng([seed, index, 1])
            observations = np.zeros((len(rollout) + 1, 5), dtype=np.float32)
            observations[:, :1] = rollout.observations
            observations[:, CONSTANT] = 0.3
            observations[:, PARKED] = rng.uniform(-1, 1)
            observations[:, TREMBLING] = 0.5 + 1e-5 * rng.standard_normal(len(observations))
            yield replace(rollout, observations=observations)


def where_actions_lead(observations: FloatArray, actions: NDArray[Any]) -> NDArray[np.float32]:
    """Positions after each step, shape (T, 1)."""
    return step(observations[:-1, :1], actions)
