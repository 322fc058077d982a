"""Sizes, coverage and wording of the built-in instructions, and the key-word test of explanations."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from kalm.envs.clevr_robot import AllOf, ClevrRobot, GatherGoal, MoveGoal, PlaceGoal, RowGoal
from kalm.envs.clevr_robot.layout import COLORS


def test_splits_have_the_papers_sizes() -> None:
    """80 goals x 18; 1,400 novel instructions: 80 x 10, 20 x 20, and 80 + 80 + 20 + 20."""
    domain = ClevrRobot()
    rows_of = {split: domain.instructed_goals(split) for split in domain.goal_splits}
    tasks = {split: Counter(row.goal.task for row in rows) for split, rows in rows_of.items()}
    sides = ("behind", "left", "front", "right")
    assert tasks["train"] == {f"place_{side}": 20 * 18 for side in sides}
    assert tasks["rephrase"] == {f"place_{side}": 20 * 10 for side in sides}
    assert tasks["easy"] == {f"move_{side}": 5 * 20 for side in sides}
    assert tasks["hard"] == {"place_two": 80, "place_three": 80, "row": 20, "gather": 20}
    assert all(tasks[unseen] == tasks[split] for unseen, split in domain.unseen_splits.items()), "as many in new words"


@pytest.mark.parametrize("split", ["train", "rephrase"])
def test_every_placement_is_covered(split: str) -> None:
    """All 80 ordered pairs with sides occur, in the training split and in the rephrased one."""
    assert len({row.goal for row in ClevrRobot().instructed_goals(split)}) == 80


@pytest.mark.parametrize("split", ClevrRobot.goal_splits)
def test_every_instruction_names_its_balls(split: str) -> None:
    """No braces are left, and the goal's colours occur in its order; in unseen sentences in any order."""
    for row in ClevrRobot().instructed_goals(split):
        assert not set("{}") & set(row.instruction)
        goals = row.goal.goals if isinstance(row.goal, AllOf) else [row.goal]
        names = [goal.ball for goal in goals if isinstance(goal, MoveGoal)]
        names += [name for goal in goals if isinstance(goal, PlaceGoal) for name in (goal.source, goal.target)]
        if split in ClevrRobot.unseen_splits:
            words = re.findall(r"[a-z]+", row.instruction.lower())
            assert Counter(word for word in words if word in COLORS) == Counter(names) or not names, row
            continue
        at = -1
        for name in names:
            at = row.instruction.find(f" {name} ", at + 1)
            assert at >= 0, row


def test_hard_goals_do_not_repeat() -> None:
    """The 160 sets of placements are distinct, and none asks for one ball at two places."""
    goals = {row.goal for row in ClevrRobot().instructed_goals("hard") if isinstance(row.goal, AllOf)}
    assert len({frozenset(goal.goals) for goal in goals}) == 160
    assert all(len({part.source for part in goal.goals}) == len(goal.goals) for goal in goals)


def test_training_instructions_explain_their_goal_and_no_other() -> None:
    """What the LLM learns to say of a rollout is recognised as its goal, and only as its own."""
    domain = ClevrRobot()
    instructed = domain.instructed_goals("train")
    assert all(row.goal.explained_by(row.instruction) for row in instructed)
    goals = sorted({row.goal for row in instructed}, key=repr)
    for row in instructed[::97]:
        assert [goal for goal in goals if goal.explained_by(row.instruction)] == [row.goal]


@pytest.mark.parametrize(
    ("goal", "text", "expected"),
    [
        (PlaceGoal("red", "blue", "left"), "push the red ball to the left of the blue ball .", True),
        (PlaceGoal("red", "blue", "left"), "push the blue ball to the left of the red ball .", False),
        (PlaceGoal("red", "blue", "left"), "push the red ball behind the blue ball .", False),
        (PlaceGoal("red", "blue", "left"), "push the red ball left of the blue ball , right ?", False),
        (PlaceGoal("red", "blue", "left"), "push the red ball to the left of the ball .", False),
        (PlaceGoal("red", "blue", "left"), "", False),
        (PlaceGoal("red", "blue", "left"), "reddish and blue, left", False),
        (MoveGoal("cyan", "behind"), "Move the CYAN ball backwards!", True),
        (MoveGoal("cyan", "front"), "move the cyan ball backwards", False),
        (MoveGoal("cyan", "front"), "move the cyan ball forward", True),
        (RowGoal(), "line up all balls", True),
        (RowGoal(), "push the red ball", False),
        (GatherGoal(), "bring all balls around the green one", True),
        (GatherGoal(), "bring all balls around the red one", False),
    ],
)
def test_explanations_are_matched_by_key_words(goal: object, text: str, expected: bool) -> None:
    """Colours in the goal's order, and the words of its side alone."""
    assert goal.explained_by(text) is expected


def test_explanations_of_several_placements_need_all_in_order() -> None:
    """Both clauses count, and so does their order."""
    goal = AllOf((PlaceGoal("red", "blue", "left"), PlaceGoal("cyan", "green", "behind")))
    first, second = "the red ball to the left of the blue ball", "the cyan ball behind the green ball"
    assert goal.explained_by(f"Put {first} and {second}.")
    assert not goal.explained_by(f"Put {second} and {first}.")
    assert not goal.explained_by(f"Put {first}.")
