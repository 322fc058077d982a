"""What is said of a step: which ball moved, where to, and nothing that a test asks in."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kalm.envs.clevr_robot import ClevrRobot, MoveGoal, PlaceGoal
from kalm.envs.clevr_robot.descriptions import describe
from kalm.envs.clevr_robot.instructions import composed, moved_sentences, nearer_sentences
from kalm.envs.clevr_robot.layout import COLORS, DIRECTIONS
from tests.envs.word_runs import runs

DOMAIN = ClevrRobot()
# Red, blue, green, purple, cyan.
BEFORE = np.array([0.0, 0.0, 0.4, 0.0, -0.4, 0.0, 0.0, 0.5, 0.4, 0.5])
# What a placement is said with, whoever says it.
CLAUSE = {"the", "ball", "one", "sphere", "and", "to", "in", "of", "on", "front", "behind", "left", "right", "side"}
CLAUSE |= {"is", "left-hand", "right-hand"}


def after(ball: str, x: float, y: float) -> np.ndarray:
    """The scene after one ball went so far."""
    moved = BEFORE.copy()
    moved[2 * COLORS.index(ball) : 2 * COLORS.index(ball) + 2] += (x, y)
    return moved


@pytest.mark.parametrize(
    ("ball", "way", "side", "other"),
    [
        ("red", (0.0, 0.2), "behind", "purple"),  # from 0.5 to 0.3 of purple, its neighbour now
        ("red", (-0.2, 0.1), "left", "green"),  # from 0.4 to hypot(0.2, 0.1) of green
        ("cyan", (0.05, -0.2), "front", "blue"),  # from 0.5 to hypot(0.05, 0.3) of blue
        ("purple", (0.2, 0.19), "right", "cyan"),  # from 0.4 to hypot(0.2, 0.19) of cyan
        ("green", (-0.15, 0.0), "left", None),  # red is next to it, and farther than before
    ],
)
def test_the_ball_that_went_furthest_is_named_with_its_side(
    ball: str, way: tuple[float, float], side: str, other: str | None
) -> None:
    """By the longer of the two components of its way; and the neighbour that it came nearer to."""
    (said,) = describe(BEFORE[None], after(ball, *way)[None])
    assert said == moved_sentences(ball, side) + (nearer_sentences(ball, other) if other else ())


def test_nothing_is_said_of_a_step_that_hardly_moves_a_ball() -> None:
    """A ball's radius is 0.13."""
    steps = np.stack([after("red", 0.129, 0.0), after("red", 0.131, 0.0)])
    assert [len(said) > 0 for said in describe(np.stack([BEFORE, BEFORE]), steps)] == [False, True]


def test_names_can_be_exchanged_in_whatever_is_said() -> None:
    """Under every exchange of colours a description becomes that of the exchanged ball, to the letter."""
    for symmetry in DOMAIN.symmetries[::17]:
        name = {color: symmetry.word_of.get(color, color) for color in COLORS}
        exchanged = tuple(symmetry.text(text) for text in moved_sentences("blue", "front"))
        assert exchanged == moved_sentences(name["blue"], "front")
        exchanged = tuple(symmetry.text(text) for text in nearer_sentences("blue", "cyan"))
        assert exchanged == nearer_sentences(name["blue"], name["cyan"])


def own_sentences() -> set[str]:
    """Everything that grounding is told beside the instructions of its rollouts."""
    rng = np.random.default_rng(1)
    places = [
        [PlaceGoal("red", "blue", "left"), PlaceGoal("cyan", "green", side)] for side in DIRECTIONS for _ in range(99)
    ]
    return {
        *(text for ball in COLORS for side in DIRECTIONS for text in moved_sentences(ball, side)),
        *(text for ball in COLORS for other in COLORS if other != ball for text in nearer_sentences(ball, other)),
        *(composed(goals, rng) for goals in places),
    }


def test_no_pattern_is_a_tests() -> None:
    """No five words in a row are shared with unseen sentences, and with the others only words of a placement."""
    own = {run for sentence in own_sentences() for run in runs(sentence)}
    for split in DOMAIN.goal_splits[1:]:
        shared = own & {run for row in DOMAIN.instructed_goals(split) for run in runs(row.instruction)}
        assert {run for run in shared if split in DOMAIN.unseen_splits or not set(run) <= CLAUSE} == set(), split


def test_only_placements_of_different_balls_are_composed() -> None:
    """Two or three; others go ill together, or have no words."""
    rng = np.random.default_rng(0)
    red, cyan = PlaceGoal("red", "blue", "left"), PlaceGoal("cyan", "green", "behind")
    sentence = DOMAIN.composed([red, cyan], rng)
    assert sentence is not None
    assert [word for word in re.findall(r"[a-z]+", sentence) if word in COLORS] == ["red", "blue", "cyan", "green"]
    assert DOMAIN.composed([red], rng) is None
    assert DOMAIN.composed([red, MoveGoal("cyan", "left")], rng) is None
    assert DOMAIN.composed([red, PlaceGoal("blue", "red", "left")], rng) is None, "they are the same two balls"
