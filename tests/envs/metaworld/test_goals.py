"""Tasks, goals and instructions: the counts of the paper, names old and new, key words."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from kalm.core.errors import DataError
from kalm.envs.metaworld import MetaWorld, TaskGoal
from kalm.envs.metaworld.goals import KEY_WORDS
from kalm.envs.metaworld.tasks import TASKS

DOMAIN = MetaWorld()


@pytest.mark.parametrize(
    ("goal_split", "num_tasks"),
    [("train", 10), ("rephrase", 10), ("easy", 8), ("hard", 4)],
)
def test_twenty_instructions_a_task(goal_split: str, num_tasks: int) -> None:
    """10 training tasks, the same rephrased, 8 easy and 4 hard ones; 240 novel goals' instructions and 400 others."""
    counts = Counter(row.goal.task for row in DOMAIN.instructed_goals(goal_split))
    assert len(counts) == num_tasks
    assert set(counts.values()) == {20}
    of_split = "train" if goal_split == "rephrase" else goal_split
    assert all(TASKS[task].goal_split is of_split for task in counts)


def test_key_words_tell_tasks_apart() -> None:
    """Every plain instruction describes its own task and no other; of the roundabout rephrasings none another's."""
    assert set(KEY_WORDS) == set(TASKS)
    for goal_split in ("train", "easy", "hard"):
        for row in DOMAIN.instructed_goals(goal_split):
            described = [task for task in TASKS if TaskGoal(task).explained_by(row.instruction)]
            assert described == [row.goal.task], row.instruction


def test_nonsense_explains_nothing() -> None:
    """Neither an empty text nor an unrelated one."""
    for text in ("", "the weather is fine"):
        assert not any(TaskGoal(task).explained_by(text) for task in TASKS)


def test_an_old_name_is_answered_with_the_new_one() -> None:
    """The paper's v2 names are known, and lead to the scenes that there are."""
    with pytest.raises(DataError, match=r"'reach-wall-v2'.*'reach-wall-v3'.*'reach-wall'"):
        DOMAIN.goal_from_json({"goal": "task", "task": "reach-wall-v2"})
    assert DOMAIN.goal_from_json({"goal": "task", "task": "reach-wall-v3"}) == TaskGoal("reach-wall")


@pytest.mark.parametrize("data", [{"goal": "task"}, {"goal": "task", "task": "juggle"}, {"goal": "task", "task": 3}, 7])
def test_a_malformed_goal_is_refused(data: object) -> None:
    """The message shows a well-formed one or lists the tasks."""
    with pytest.raises(DataError, match="reach"):
        DOMAIN.goal_from_json(data)


def test_paper_names() -> None:
    """The package's tasks were called -v2, the composed ones had no version."""
    assert TASKS["hammer"].paper_name == "hammer-v2"
    assert TASKS["make-coffee"].paper_name == "make-coffee"
    assert all(re.fullmatch(r"[a-z-]+", name) for name in TASKS)
