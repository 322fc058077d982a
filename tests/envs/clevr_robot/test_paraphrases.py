"""The bank of other words: what each sentence asks for, and that it gives nothing of the test's words away."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kalm.core.goal import InstructedGoal
from kalm.envs.clevr_robot import ClevrRobot
from kalm.envs.clevr_robot.goals import AllOf, ClevrRobotGoal, GatherGoal, MoveGoal, PlaceGoal, RowGoal
from kalm.envs.clevr_robot.layout import COLORS, DIRECTIONS
from kalm.envs.clevr_robot.paraphrases import paraphrases
from tests.envs.word_runs import runs

DOMAIN = ClevrRobot()
SHOWN = [split for split in DOMAIN.goal_splits if split not in DOMAIN.unseen_splits]
# Words that one has to use, in every direction, and those of the opposite.
SIDES = {
    "behind": r"behind|back|backwards?|away from me|deeper",
    "left": r"left",
    "front": r"front|forwards?|(?:towards|closer to) me|my side",
    "right": r"right",
}
PLACE = PlaceGoal("red", "blue", "left")
TWO = AllOf((PLACE, PlaceGoal("green", "cyan", "front")))


def _words(texts: set[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}


def _sentences(splits: list[str]) -> set[str]:
    return {one.instruction for split in splits for one in DOMAIN.instructed_goals(split)}


def test_the_words_that_the_test_keeps_are_in_no_paraphrase() -> None:
    """What only the unseen splits say is not in the bank, not even a short word, and no sentence is a split's own."""
    bank = {text for split in SHOWN for one in DOMAIN.instructed_goals(split) for text in DOMAIN.paraphrases(one)}
    kept = _words(_sentences(list(DOMAIN.unseen_splits))) - _words(_sentences(SHOWN))
    assert len(kept) > 200
    assert not kept & _words(bank)
    assert not bank & _sentences(list(DOMAIN.goal_splits))
    # Of five words in a row only those of one side are shared.
    kept_runs = {run for text in _sentences(list(DOMAIN.unseen_splits)) for run in runs(text)}
    assert kept_runs & {run for text in bank for run in runs(text)} == {("at", "the", "back", "of", "the")}


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_a_placement_names_both_balls_and_its_side(direction: str) -> None:
    """Both colours, no third one, and the side; the opposite side is named only where the balls trade places."""
    goal = PlaceGoal("purple", "cyan", direction)
    drawn = set(paraphrases(goal, np.random.default_rng(0), 300))
    assert len(drawn) > 200
    for text in drawn:
        assert _words({text}) & set(COLORS) == {"purple", "cyan"}, text
        said = [side for side, words in SIDES.items() if re.search(rf"\b(?:{words})\b", _without_right(text))]
        assert said, text
        assert len(said) == 1, text
        is_turned = re.search(r"wrong|should be .* so move", text)
        opposite = {"behind": "front", "front": "behind", "left": "right", "right": "left"}[direction]
        assert said == [opposite if is_turned else direction], text


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_a_push_names_its_ball_and_its_way(direction: str) -> None:
    """One colour and one direction."""
    drawn = set(paraphrases(MoveGoal("green", direction), np.random.default_rng(0), 200))
    for text in drawn:
        assert _words({text}) & set(COLORS) == {"green"}, text
        said = [side for side, words in SIDES.items() if re.search(rf"\b(?:{words})\b", text.lower())]
        assert said == [direction], text


def _without_right(text: str) -> str:
    """Without the "right" that only means exactly."""
    return re.sub(r"\bright (?=behind|in front)", "", text.lower())


@pytest.mark.parametrize("goal", [TWO, RowGoal(), GatherGoal()])
def test_hard_goals_name_their_balls_in_order(goal: ClevrRobotGoal) -> None:
    """The colours of the placements one after the other; the row's in its order; the gathering's centre."""
    for text in paraphrases(goal, np.random.default_rng(0), 100):
        named = [word for word in re.findall(r"[a-z]+", text.lower()) if word in COLORS]
        if isinstance(goal, AllOf):
            assert named == ["red", "blue", "green", "cyan"], text
        elif isinstance(goal, RowGoal):
            assert named[0] == "red", text
            assert set(named) == set(COLORS), text
        else:
            assert "green" in named, text


def test_more_placements_than_any_split_has_get_none() -> None:
    """Four at once, as a goals file may ask for, have no pattern."""
    others = [PlaceGoal("red", "cyan", "left"), PlaceGoal("purple", "cyan", "right")]
    assert paraphrases(AllOf((*TWO.goals, *others)), np.random.default_rng(0), 5) == []


def test_they_are_the_same_every_time_and_for_every_sentence_of_a_goal() -> None:
    """A domain's paraphrases depend on the goal alone, and differ between goals in more than their words' slots."""
    (first, *_), (second, *_) = (DOMAIN.paraphrases(InstructedGoal(PLACE, text, "train")) for text in ("a", "b"))
    assert first == second
    other = PlaceGoal("red", "blue", "right")
    patterns = [
        [re.sub("left|right", "", text) for text in DOMAIN.paraphrases(InstructedGoal(goal, "", "train"))]
        for goal in (PLACE, other)
    ]
    assert len(set(patterns[0]) & set(patterns[1])) < len(patterns[0]) / 2
