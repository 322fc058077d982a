"""What an observation says about a scene comes back when an episode begins from it."""

from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest

import kalm.envs  # noqa: F401  # registers the environment
from kalm.envs.metaworld.expert import expert
from kalm.envs.metaworld.tasks import TASKS


@pytest.mark.parametrize("task", TASKS)
def test_a_moment_in_the_middle_comes_back(task: str) -> None:
    """Hand, gripper, target and entities of a stored (32-bit) observation are restored to within rounding."""
    env, act = gym.make("kalm/MetaWorld-v0", max_steps=300), expert(task)
    observation, _ = env.reset(seed=0, options={"task": task})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Constant.s. may be too high")
        for _ in range(45):
            observation, *_ = env.step(act(observation))
    stored = observation.astype(np.float32)
    again, info = env.reset(seed=1, options={"task": task, "observation": stored})
    np.testing.assert_allclose(again, stored, atol=1e-5)
    after, *_ = env.step(np.zeros(4, dtype=np.float32))
    assert np.abs(after[:3] - stored[:3]).max() < 0.02, "the arm stays where it was put"
    assert info["instruction"]


def test_what_cannot_be_restored_is_seen_as_it_is() -> None:
    """A hand far out of reach ends up elsewhere, and the observation says so."""
    env = gym.make("kalm/MetaWorld-v0")
    observation, _ = env.reset(seed=0, options={"task": "reach"})
    beyond = observation.copy()
    beyond[:3] = 0.0, 2.0, 0.2
    seen, _ = env.reset(seed=0, options={"task": "reach", "observation": beyond})
    assert seen[1] < 1.5
    assert np.isfinite(seen).all()
