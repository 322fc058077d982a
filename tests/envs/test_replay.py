"""Imagined rollouts in the simulator: what comes true, and how far imagination was from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from kalm.core.goal import InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.envs.clevr_robot import ClevrRobot
from kalm.envs.simulation import drift, replay
from tests.chain_domain import CellGoal, ChainDomain, one_hot

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
