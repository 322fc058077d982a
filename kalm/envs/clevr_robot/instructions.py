"""Instructions of the four splits, filled in from the JSON files beside this one."""

from __future__ import annotations

import json
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

from kalm.core.goal import InstructedGoal
from kalm.envs.clevr_robot.goals import AllOf, ClevrRobotGoal, GatherGoal, MoveGoal, PlaceGoal, RowGoal
from kalm.envs.clevr_robot.layout import COLORS, DIRECTIONS

# From what the data hold to what they never showed (KALM, section 4).
GOAL_SPLITS = ("train", "rephrase", "easy", "hard")


@cache
def instructed_goals(goal_split: str) -> tuple[InstructedGoal, ...]:
    """Every instruction of a split, in the order of the data file."""
    fill = dict(zip(GOAL_SPLITS, (_train, _rephrase, _easy, _hard), strict=True))
    path = Path(__file__).parent / "instructions" / f"{goal_split}.json"
    pairs = fill[goal_split](json.loads(path.read_text(encoding="utf-8")))
    return tuple(InstructedGoal(goal, text, goal_split) for goal, text in pairs)


def _train(data: dict[str, Any]) -> list[tuple[ClevrRobotGoal, str]]:
    """18 patterns for each of 80 placements."""
    return [
        (PlaceGoal(source, target, side), pattern.format(source=source, target=target, side=data["sides"][side]))
        for source, target in permutations(COLORS, 2)
        for side in DIRECTIONS
        for pattern in data["place"]
    ]


def _rephrase(data: dict[str, Any]) -> list[tuple[ClevrRobotGoal, str]]:
    """The same placements, each in the ten wordings of its side."""
    return [
        (PlaceGoal(source, target, side), pattern.format(source=source, target=target))
        for source, target in permutations(COLORS, 2)
        for side in DIRECTIONS
        for pattern in data["place"][side]
    ]


def _easy(data: dict[str, Any]) -> list[tuple[ClevrRobotGoal, str]]:
    """Each ball in each direction, in twenty wordings."""
    return [
        (MoveGoal(color, direction), pattern.format(ball=color))
        for color in COLORS
        for direction in DIRECTIONS
        for pattern in data["move"][direction]
    ]


def _hard(data: dict[str, Any]) -> list[tuple[ClevrRobotGoal, str]]:
    """Two placements, three placements, the row, the gathering."""

    def clause(goal: PlaceGoal) -> str:
        side = data["sides"][goal.direction]
        return data["placement"].format(source=goal.source, target=goal.target, side=side)

    pairs: list[tuple[ClevrRobotGoal, str]] = []
    for number in ("two", "three"):
        patterns = data[number]["patterns"]
        for index, names in enumerate(data[number]["goals"]):
            goal = AllOf(tuple(PlaceGoal(*placement) for placement in names))
            pairs.append((goal, patterns[index % len(patterns)].format(*map(clause, goal.goals))))
    pairs += [(RowGoal(), text) for text in data["row"]]
    pairs += [(GatherGoal(), text) for text in data["gather"]]
    return pairs
