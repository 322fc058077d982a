"""The experts: how often they succeed, and that what is collected says so."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from kalm.core.goal import InstructedGoal
from kalm.envs.metaworld.domain import MetaWorld
from kalm.envs.metaworld.goals import TaskGoal
from kalm.envs.metaworld.tasks import TASKS
from kalm.envs.simulation import collect_for

NUM_ROLLOUTS = 3
# Of three rollouts within 200 steps; noise of 0.1 costs the tasks with a grip or a roll some.
LEAST_SUCCESSES = {"soccer": 2, "hammer": 2}


@pytest.fixture(scope="module")
def successes() -> Counter[str]:
    """Successes of each task's expert, with the noise of a collection."""
    goals = [InstructedGoal(TaskGoal(t, 200), "do it", "train") for t in TASKS for _ in range(NUM_ROLLOUTS)]
    rollouts = collect_for(MetaWorld(), goals, 11, range(len(goals)))
    return Counter(rollout.goal["task"] for rollout in rollouts if rollout.is_success)


@pytest.mark.parametrize("task", TASKS)
def test_expert_succeeds(successes: Counter[str], task: str) -> None:
    """Nearly always, in the composed tasks too."""
    assert successes[task] >= LEAST_SUCCESSES.get(task, NUM_ROLLOUTS)


def test_failed_rollouts_are_kept_and_marked() -> None:
    """Under a short horizon failures are in the collection too."""
    rollouts = list(MetaWorld(horizon=40).collect(30, seed=0))
    verdicts = [rollout.is_success for rollout in rollouts]
    assert 0 < sum(verdicts) < len(verdicts) == 30
    for rollout in rollouts:
        assert rollout.terminated[-1] == rollout.is_success
        assert rollout.truncated[-1] == (not rollout.is_success)
        assert len(rollout) <= 40


def test_noise_is_recorded() -> None:
    """The stored actions are those carried out: noisy ones differ from the expert's, in the same layout."""
    calm, noisy = (next(MetaWorld(action_noise=noise).collect(1, seed=2)) for noise in (0.0, 0.3))
    np.testing.assert_array_equal(calm.observations[0], noisy.observations[0])
    assert np.abs(calm.actions[:10] - noisy.actions[:10]).max() > 0.1
    assert np.abs(noisy.actions).max() <= 1.0


@pytest.mark.parametrize("settings", [{"action_noise": -0.1}, {"horizon": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    """The message names the setting."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        MetaWorld(**settings)
