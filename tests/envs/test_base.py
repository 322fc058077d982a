"""What all domains share: labelling rollouts, judging mixed batches, reading users' goals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalm.core.errors import DataError
from kalm.core.goal import reward_of_each, success_of_each
from kalm.core.names import Source
from tests.chain_domain import LEFT, RIGHT, CellGoal, ChainDomain, one_hot

CHAIN = ChainDomain()
TO_RIGHT_END = next(row for row in CHAIN.instructed_goals("train") if row.goal == CellGoal(4))


def test_rollout_is_cut_after_the_step_that_meets_the_goal() -> None:
    """Cells 2, 3, 4, 3: the goal, cell 4, is met by the second action; that step is terminated, the third is gone."""
    observations = one_hot(np.array([2, 3, 4, 3]))
    rollout = CHAIN.label_rollout(TO_RIGHT_END, observations, np.array([RIGHT, RIGHT, LEFT]), Source.REAL)
    assert rollout.is_success
    assert rollout.actions.tolist() == [RIGHT, RIGHT]
    assert rollout.observations.argmax(-1).tolist() == [2, 3, 4]
    assert rollout.terminated.tolist() == [False, True]
    assert rollout.truncated.tolist() == [False, False]
    assert rollout.rewards.tolist() == [0.0, 1.0]


def test_rollout_without_success_is_truncated_not_terminated() -> None:
    """Cells 2, 1, 0 never reach cell 4: the data ends, the task does not."""
    rollout = CHAIN.label_rollout(TO_RIGHT_END, one_hot(np.array([2, 1, 0])), np.array([LEFT, LEFT]), Source.IMAGINARY)
    assert not rollout.is_success
    assert rollout.terminated.tolist() == [False, False]
    assert rollout.truncated.tolist() == [False, True]
    assert rollout.rewards.tolist() == [0.0, 0.0]
    assert rollout.source == Source.IMAGINARY


def test_violations_are_counted_up_to_the_cut_only() -> None:
    """Cells 2, 4, 2: the first step jumps and meets the goal; the jump after it is cut off and not counted."""
    rollout = CHAIN.label_rollout(TO_RIGHT_END, one_hot(np.array([2, 4, 2])), np.array([RIGHT, LEFT]), Source.IMAGINARY)
    assert len(rollout) == 1
    assert rollout.violations == {"jumped": 1, "nowhere": 0}


def test_whoever_made_a_rollout_may_say_where_it_ends() -> None:
    """Cells 2, 4, 2: met at the first step and gone on, uncut; cells 2, 3, 4: met at the last one, which ends it."""
    actions = np.array([RIGHT, LEFT])
    on, there = (
        CHAIN.label_rollout(TO_RIGHT_END, one_hot(np.array(cells)), actions, Source.IMAGINARY, ends_when_met=False)
        for cells in ([2, 4, 2], [2, 3, 4])
    )
    assert len(on) == len(there) == 2
    assert on.is_success
    assert there.is_success
    assert (on.terminated.tolist(), on.truncated.tolist()) == ([False, False], [False, True])
    assert (there.terminated.tolist(), there.truncated.tolist()) == ([False, True], [False, False])
    assert on.violations == {"jumped": 2, "nowhere": 0}


def test_rollout_without_steps_is_left_for_validation_to_refuse() -> None:
    """No action at all gives an empty rollout that is no success."""
    rollout = CHAIN.label_rollout(TO_RIGHT_END, one_hot(np.array([4])), np.zeros(0, dtype=np.int64), Source.IMAGINARY)
    assert len(rollout) == 0
    assert not rollout.is_success


def test_a_batch_of_mixed_goals_is_judged_row_by_row() -> None:
    """Three steps into cells 0, 4, 0 for the goals 0, 0, 4: only the first arrives."""
    goals = [CellGoal(0), CellGoal(0), CellGoal(4)]
    before, after = one_hot(np.array([1, 3, 1])), one_hot(np.array([0, 4, 0]))
    action = np.array([LEFT, RIGHT, LEFT])
    assert success_of_each(goals, after, before, action).tolist() == [True, False, False]
    assert reward_of_each(goals, before, action, after).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1, 2]", "line 1: .*goal, instruction and goal_split"),
        ('{"goal": {"type": "cell", "cell": 1}, "instruction": " ", "goal_split": "easy"}', "must be a sentence"),
        ('{"goal": {"type": "cell", "cell": 1}, "instruction": 5, "goal_split": "easy"}', "instruction is 5"),
        ("\n\n", "holds no goals"),
    ],
)
def test_a_bad_goals_file_is_refused(tmp_path: Path, line: str, message: str) -> None:
    """The error names the line and what it should be."""
    path = tmp_path / "goals.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        CHAIN.load_instructed_goals(path)


def test_a_missing_goals_file_is_named(tmp_path: Path) -> None:
    """The path is in the message, and what such a file holds."""
    with pytest.raises(DataError, match=r"none\.jsonl does not exist.*goal, instruction, goal_split"):
        CHAIN.load_instructed_goals(tmp_path / "none.jsonl")
