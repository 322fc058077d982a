"""What an observation says about a scene comes back when an episode begins from it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from kalm.envs.metaworld import MetaWorld
from kalm.envs.metaworld.expert import expert
from kalm.envs.metaworld.tasks import TASKS
from kalm.envs.vector_env import SingleEnv


@pytest.mark.parametrize("task", TASKS)
def test_a_moment_in_the_middle_comes_back(task: str) -> None:
    """Hand, gripper, target and entities of a stored (32-bit) observation are restored to within rounding."""
    env, act = SingleEnv(MetaWorld(horizon=300)), expert(task)
    observation, _ = env.reset(seed=0, options={"goal": task})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Constant.s. may be too high")
        for _ in range(45):
            observation, *_ = env.step(act(observation))
    stored = observation.astype(np.float32)
    again, info = env.reset(seed=1, options={"goal": task, "observation": stored})
    np.testing.assert_allclose(again, stored, atol=1e-5)
    after, *_ = env.step(np.zeros(4, dtype=np.float32))
    assert np.abs(after[:3] - stored[:3]).max() < 0.02, "the arm stays where it was put"
    assert info["instruction"]


def test_what_cannot_be_restored_is_seen_as_it_is() -> None:
    """A hand far out of reach ends up elsewhere, and the observation says so."""
    env = SingleEnv(MetaWorld())
    observation, _ = env.reset(seed=0, options={"goal": "reach"})
    beyond = observation.copy()
    beyond[:3] = 0.0, 2.0, 0.2
    seen, _ = env.reset(seed=0, options={"goal": "reach", "observation": beyond})
    assert seen[1] < 1.5
    assert np.isfinite(seen).all()
