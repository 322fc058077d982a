"""The expert solves the training goals, fast enough and reproducibly, and its data is what learning expects."""

from __future__ import annotations

import numpy as np
import pytest

from kalm.core.rollout import Rollout
from kalm.envs.clevr_robot import ClevrRobot, PlaceGoal
from kalm.envs.clevr_robot.expert import has_failed, place_action
from kalm.envs.clevr_robot.goals import goal_from_json
from kalm.envs.clevr_robot.layout import COLORS, DIRECTIONS


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    """400 rollouts of the expert as collection runs it."""
    return list(ClevrRobot().collect(400, seed=2))


def test_expert_solves_training_goals(rollouts: list[Rollout]) -> None:
    """At least 95 % within 50 steps, and on average in few."""
    assert np.mean([rollout.is_success for rollout in rollouts]) >= 0.95
    assert max(map(len, rollouts)) <= 50
    assert np.mean([len(rollout) for rollout in rollouts]) < 5


def test_rollouts_end_where_the_goal_is_met(rollouts: list[Rollout]) -> None:
    """Only the last observation of a success meets the goal; it is terminated and earns 100."""
    for rollout in rollouts[:100]:
        goal = goal_from_json(rollout.goal)
        met = goal.success(rollout.observations)
        assert not met[:-1].any()
        assert met[-1] == rollout.is_success == rollout.terminated[-1] == (not rollout.truncated[-1])
        assert (rollout.rewards[-1] == 100.0) == rollout.is_success
        np.testing.assert_allclose(
            rollout.rewards[:-1],
            goal.reward(rollout.observations[:-2], rollout.actions[:-1], rollout.observations[1:-1]),
            rtol=1e-6,
        )


def test_collection_covers_all_training_goals_and_wordings(rollouts: list[Rollout]) -> None:
    """Instructions are taken in turn, so the first 400 rollouts have 400 different ones."""
    assert len({rollout.instruction for rollout in rollouts}) == 400


def test_action_noise_is_carried_out_and_recorded() -> None:
    """The expert pushes only the two balls of its goal; under full noise most pushes are of the others."""
    involved = []
    for noise in (0.0, 1.0):
        shares = []
        for rollout in ClevrRobot(noise).collect(8, seed=0):
            goal = goal_from_json(rollout.goal)
            assert isinstance(goal, PlaceGoal)
            own = [COLORS.index(goal.source), COLORS.index(goal.target)]
            shares.append(np.isin(rollout.actions // 8, own).mean())
        involved.append(np.mean(shares))
    assert involved[0] == 1.0
    assert involved[1] < 0.6
    with pytest.raises(ValueError, match="action_noise is 1.5"):
        ClevrRobot(1.5)


@pytest.mark.parametrize(
    ("source_at", "target_at", "direction", "action"),
    [
        ((-0.45, 0.2), (0.1, 0.2), "left", 0),
        ((0.45, 0.2), (-0.1, 0.2), "right", 2),
        ((0.0, 0.57), (0.0, -0.05), "behind", 3),
    ],
)
def test_expert_pushes_straight_where_nothing_is_in_the_way(
    source_at: tuple[float, float], target_at: tuple[float, float], direction: str, action: int
) -> None:
    """A source out at the wanted side of its target is pushed straight towards it."""
    observation = np.array([[*source_at, *target_at, -0.45, -0.15, 0.45, -0.15, 0.45, 0.57]])
    wanted = list(DIRECTIONS).index(direction)
    assert place_action(observation, np.array([0]), np.array([1]), np.array([wanted])) == [action]


def test_a_push_has_failed_if_its_own_ball_stayed() -> None:
    """Ball 1 is pushed: what the others do does not matter."""
    before = np.zeros((2, 10))
    after = before.copy()
    after[0, 2] = 0.2
    after[1, 0] = 0.2
    np.testing.assert_array_equal(has_failed(before, np.array([8, 8]), after), [False, True])
