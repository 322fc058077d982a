"""The one loop: what an episode earns, what chance each collected rollout has, and imagined rollouts carried out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kalm.core.goal import Array, FloatArray, InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.envs.clevr_robot import ClevrRobot
from kalm.envs.clevr_robot.layout import DIRECTIONS
from kalm.envs.simulation import Episode, drift, evaluate, replay
from tests.chain_domain import LEFT, RIGHT, CellGoal, ChainDomain, one_hot

DOMAIN = ChainDomain()


def walk(goal: int, cells: Sequence[int], actions: Sequence[int]) -> Rollout:
    """A rollout along some cells, true to its actions or not."""
    instructed = InstructedGoal(CellGoal(goal), f"go to {goal}", "hard")
    return DOMAIN.label_rollout(instructed, one_hot(np.array(cells)), np.array(actions), Source.IMAGINARY)


@pytest.mark.parametrize("num_envs", [1, 2, 64])
def test_a_goal_that_imagination_cheated_into_does_not_come_true(num_envs: int) -> None:
    """Three walks from the left end, side by side or not.

    The first steps right twice and is in the centre. The second jumped there, while its step leads to cell 1: two of
    five numbers are off by one, so the drift is the root of 2/5. The third steps against the wall, then right: its
    imagination is one cell ahead, and the simulator is in cell 1 where imagination says 2.
    """
    rollouts = [walk(2, [0, 1, 2], [1, 1]), walk(2, [0, 2], [1]), walk(2, [0, 1, 2], [0, 1])]
    results = replay(DOMAIN, rollouts, num_envs)
    assert [rollout.is_success for rollout in rollouts] == [True, True, True]
    assert [result.is_success for result in results] == [True, False, False]
    assert list(map(drift, rollouts, results)) == pytest.approx([0.0, np.sqrt(0.4), np.sqrt(0.4)])


def test_a_goal_that_comes_true_before_imagination_thinks_so_counts() -> None:
    """The simulator is in the centre after two steps; imagination hesitates; the drift is that of the second step."""
    rollout = walk(2, [0, 0, 1, 2], [1, 1, 1])
    (result,) = replay(DOMAIN, [rollout])
    assert result.is_success
    assert drift(rollout, result) == pytest.approx(np.sqrt(0.4))


def test_real_rollouts_come_true_again() -> None:
    """The expert's pushes on CLEVR-Robot lead where they led."""
    domain = ClevrRobot()
    rollouts = [rollout for rollout in domain.collect(12, seed=0) if rollout.is_success]
    results = replay(domain, rollouts)
    assert len(results) > 5
    assert all(result.is_success for result in results)
    assert max(map(drift, rollouts, results)) < 1e-3


class HourlyGoal(CellGoal):
    """A cell; each step to the right earns 1."""

    def reward(self, observation: Array, action: Array, next_observation: Array) -> FloatArray:
        """By the action alone."""
        return 1.0 * (action == RIGHT)


class HourlyChain(ChainDomain):
    """The chain of such cells."""

    goal_class = HourlyGoal


def test_an_episode_earns_the_rewards_of_all_its_steps() -> None:
    """Against the right wall, away from the left end, every one of twelve steps earns 1."""
    episode = Episode(InstructedGoal(HourlyGoal(0), "go left", "train"), seed=0)
    (result,) = evaluate(lambda seen, numbers, info: np.full(len(numbers), RIGHT), HourlyChain(), [episode])
    assert (result.episode_return, result.num_steps, result.is_success) == (12.0, 12, False)


def test_who_acts_is_told_what_the_environment_says_of_the_same_rows() -> None:
    """Five episodes in two rows: each is told its own sentence, and a row that exists."""
    rows = [row for split in DOMAIN.goal_splits for row in DOMAIN.instructed_goals(split)][:5]
    seen_rows = set()

    def act(seen: Array, numbers: list[int], info: dict[str, Any]) -> Array:
        assert info["instruction"] == [rows[number].instruction for number in numbers]
        assert not any(info["is_success"])
        seen_rows.update(info["row"])
        return np.full(len(numbers), RIGHT)

    evaluate(act, DOMAIN, [Episode(row, seed) for seed, row in enumerate(rows)], num_envs=2)
    assert seen_rows == {0, 1}


def test_an_episode_whose_time_is_up_stands_still() -> None:
    """After twelve steps nothing moves, nothing is earned and the ends stay, until the row is reset."""
    env = HourlyChain().make_vector_env(2)
    env.reset(seed=0, options={"goals": [HourlyGoal(0), HourlyGoal(0)]})
    for _ in range(12):
        before, _, _, truncated, _ = env.step(np.array([RIGHT, RIGHT]))
    assert truncated.all()
    after, rewards, terminated, truncated, _ = env.step(np.array([LEFT, RIGHT]))
    np.testing.assert_array_equal(after, before)
    assert (rewards.tolist(), terminated.tolist(), truncated.tolist()) == ([0.0] * 2, [False] * 2, [True] * 2)
    env.reset(seed=0, options={"reset_mask": [True, False]})
    assert env.step(np.array([RIGHT, RIGHT]))[3].tolist() == [False, True]


def test_each_collected_rollout_has_its_own_chance() -> None:
    """Starts, noise and instructions: no two of thirty rollouts begin alike, act alike or are for the same."""
    rollouts = list(ClevrRobot(action_noise=1.0).collect(30, seed=0))
    for facts in ("observations", "actions"):
        assert len({getattr(rollout, facts)[:5].tobytes() for rollout in rollouts}) == 30
    assert len({rollout.instruction for rollout in rollouts}) == 30
    assert {rollout.goal["direction"] for rollout in rollouts} == set(DIRECTIONS), "in a shuffled order"
