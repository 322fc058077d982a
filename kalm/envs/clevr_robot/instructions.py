"""Instructions of all splits, filled in from the JSON files beside this one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from kalm.core.goal import InstructedGoal
from kalm.envs.clevr_robot.goals import AllOf, ClevrRobotGoal, GatherGoal, MoveGoal, PlaceGoal, RowGoal
from kalm.envs.clevr_robot.layout import COLORS, DIRECTIONS

Pairs = list[tuple[ClevrRobotGoal, str]]

_NUMBERS = ("two", "three")  # of placements in a hard goal

# Goals in words that nothing shows before the test: the split that has the same goals.
UNSEEN_SPLITS = {"rephrase_unseen": "rephrase", "easy_unseen": "easy", "hard_unseen": "hard"}
# From what the data hold to what they never showed (KALM, section 4).
GOAL_SPLITS = ("train", "rephrase", "easy", "hard", *UNSEEN_SPLITS)


@cache
def instructed_goals(goal_split: str) -> tuple[InstructedGoal, ...]:
    """Every instruction of a split, in the order of the data file."""
    fill = dict(zip(GOAL_SPLITS, (_train, _rephrase, _easy, _hard, _rephrase, _easy_unseen, _hard_unseen), strict=True))
    return tuple(InstructedGoal(goal, text, goal_split) for goal, text in fill[goal_split](_read(goal_split)))


def composed(goals: Sequence[PlaceGoal], rng: np.random.Generator) -> str:
    """A sentence that asks for two or three placements at once; pattern and words are drawn, and are no test's."""
    data = _read("composed")
    placement, patterns = _drawn(data["placements"], rng), data["patterns"][str(len(goals))]
    parts = [
        placement.format(source=goal.source, target=goal.target, side=_drawn(data["sides"][goal.direction], rng))
        for goal in goals
    ]
    return _drawn(patterns, rng).format(*parts)


@cache
def moved_sentences(ball: str, side: str) -> tuple[str, ...]:
    """What is said of a ball that went to a side; in small letters, for names are exchanged as they are written."""
    data = _read("observed")
    words = data["sides"][side]
    return tuple(pattern.format(ball=ball, side=words[n % len(words)]) for n, pattern in enumerate(data["moved"]))


@cache
def nearer_sentences(ball: str, other: str) -> tuple[str, ...]:
    """What is said of a ball that came nearer to another."""
    return tuple(pattern.format(ball=ball, other=other) for pattern in _read("observed")["nearer"])


def _drawn(entries: Sequence[str], rng: np.random.Generator) -> str:
    return entries[int(rng.integers(len(entries)))]


@cache
def _read(name: str) -> dict[str, Any]:
    path = Path(__file__).parent / "instructions" / f"{name}.json"
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def _train(data: dict[str, Any]) -> Pairs:
    """18 patterns for each of 80 placements."""
    return [
        (PlaceGoal(source, target, side), pattern.format(source=source, target=target, side=data["sides"][side]))
        for source, target in permutations(COLORS, 2)
        for side in DIRECTIONS
        for pattern in data["place"]
    ]


def _rephrase(data: dict[str, Any]) -> Pairs:
    """The same placements, each in the ten wordings of its side."""
    return [
        (PlaceGoal(source, target, side), pattern.format(source=source, target=target))
        for source, target in permutations(COLORS, 2)
        for side in DIRECTIONS
        for pattern in data["place"][side]
    ]


def _easy(data: dict[str, Any]) -> Pairs:
    """Each ball in each direction, in twenty wordings."""
    return [
        (MoveGoal(color, direction), pattern.format(ball=color))
        for color in COLORS
        for direction in DIRECTIONS
        for pattern in data["move"][direction]
    ]


def _hard(data: dict[str, Any]) -> Pairs:
    """Two placements, three placements, the row, the gathering."""
    return _hard_pairs(data, {number: data[number]["patterns"] for number in _NUMBERS}, data)


def _easy_unseen(data: dict[str, Any]) -> Pairs:
    """Each ball in each direction, in twenty wordings that have room for the words of the direction."""
    return [
        (MoveGoal(color, direction), pattern.format(ball=color, **data["words"][direction]))
        for color in COLORS
        for direction in DIRECTIONS
        for pattern in data["move"]
    ]


def _hard_unseen(data: dict[str, Any]) -> Pairs:
    """The goals of the hard split in other words."""
    return _hard_pairs(data, {number: data[number] for number in _NUMBERS}, _read("hard"))


def _hard_pairs(data: dict[str, Any], patterns_of: Mapping[str, list[str]], goals_of: Mapping[str, Any]) -> Pairs:
    """Goals out of ``goals_of``, in the words of ``data``; each set of placements takes the next pattern in turn."""

    def clause(goal: PlaceGoal) -> str:
        side = data["sides"][goal.direction]
        return data["placement"].format(source=goal.source, target=goal.target, side=side)

    pairs: Pairs = []
    for number, patterns in patterns_of.items():
        for index, names in enumerate(goals_of[number]["goals"]):
            goal = AllOf(tuple(PlaceGoal(*placement) for placement in names))
            pairs.append((goal, patterns[index % len(patterns)].format(*map(clause, goal.goals))))
    pairs += [(RowGoal(), text) for text in data["row"]]
    pairs += [(GatherGoal(), text) for text in data["gather"]]
    return pairs
