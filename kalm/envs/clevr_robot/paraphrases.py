"""A bank of other words for CLEVR-Robot's goals: a learner that met a goal in many words reads others better.

The bank is data, ``instructions/paraphrases.json``: patterns, nouns, and several ways to say each side. It shares no
sentence with any split and no rare word with the unseen ones (a test compares them), so a learner that trained on it
still meets their words for the first time at the test.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kalm.envs.clevr_robot.goals import AllOf, ClevrRobotGoal, GatherGoal, MoveGoal, PlaceGoal, RowGoal

_OPPOSITES = {"behind": "front", "front": "behind", "left": "right", "right": "left"}
_SAME_NOUN = 0.7  # how often both balls of a placement are called alike


def paraphrases(goal: ClevrRobotGoal, rng: np.random.Generator, n: int) -> list[str]:
    """Draw ``n`` sentences that ask for a goal, patterns and words drawn apart; the same one may come twice.

    There are none for more placements at once than any split has.
    """
    if isinstance(goal, AllOf) and str(len(goal.goals)) not in _bank()["all_of"]:
        return []
    return [_sentence(goal, rng) for _ in range(n)]


def _sentence(goal: ClevrRobotGoal, rng: np.random.Generator) -> str:
    bank = _bank()
    match goal:
        case PlaceGoal():
            source, side, target = _placement(goal, rng)
            text = _one_of(bank["place"]["patterns"], rng).format(
                source=source,
                side=side,
                target=target,
                side_of_it=_one_of(bank["place"]["sides_of_it"][goal.direction], rng),
                opposite=_one_of(bank["place"]["sides"][_OPPOSITES[goal.direction]], rng),
            )
        case MoveGoal():
            way = _one_of(bank["move"]["ways"][goal.direction], rng)
            ball = f"the {goal.ball} {_one_of(bank['nouns'], rng)}"
            text = _one_of(bank["move"]["patterns"], rng).format(ball=ball, way=way)
        case AllOf():
            clauses = [" ".join(_placement(placement, rng)) for placement in goal.goals]
            text = _one_of(bank["all_of"][str(len(clauses))], rng).format(*clauses)
        case RowGoal() | GatherGoal():
            text = _one_of(bank[goal.kind], rng)
        case _:
            raise TypeError(f"no paraphrase is known for a {type(goal).__name__}")
    return text[0].upper() + text[1:]


def _placement(goal: PlaceGoal, rng: np.random.Generator) -> tuple[str, str, str]:
    """Source, side and target of a placement, in words that read as a clause when joined."""
    bank = _bank()
    noun = _one_of(bank["nouns"], rng)
    other = noun if rng.random() < _SAME_NOUN else _one_of(bank["nouns"], rng)
    return (
        f"the {goal.source} {noun}",
        _one_of(bank["place"]["sides"][goal.direction], rng),
        f"the {goal.target} {other}",
    )


def _one_of(texts: list[str], rng: np.random.Generator) -> str:
    return texts[rng.integers(len(texts))]


@cache
def _bank() -> dict[str, Any]:
    path = Path(__file__).parent / "instructions" / "paraphrases.json"
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data
