"""Says of a step which ball moved, and where to: what anybody sees who knows the balls by name and left from right.

No goal's rule is asked. What it takes to know is which numbers of an observation are the x and y of which ball, and
which way the axes point; that a step did what a goal asks for, nothing here says.

Shape letters: B steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kalm.core.goal import Array, FloatArray
from kalm.envs.clevr_robot.layout import BALL_RADIUS, COLORS, DIRECTIONS, NUM_BALLS

_SIDES = tuple(DIRECTIONS)
# A ball that went less far than its radius has hardly moved to the eye, and balls roll on for a while by themselves.
_LEAST_WAY = BALL_RADIUS


def describe(before: FloatArray, after: FloatArray) -> list[Sequence[str]]:
    """Sentences about each of B steps, from observations of shape (B, 10); none where nothing moved far.

    Of the ball that went furthest they say the side that its way points to most, and which other ball it came nearer
    to, if the one that is next to it afterwards is nearer than before.
    """
    centers = [np.asarray(observation).reshape(-1, NUM_BALLS, 2) for observation in (before, after)]
    way = centers[1] - centers[0]
    distance = np.hypot(way[..., 0], way[..., 1])
    ball, steps = distance.argmax(axis=1), np.arange(len(way))
    side = (way[steps, ball] @ np.array([DIRECTIONS[name] for name in _SIDES]).T).argmax(axis=1)
    gap_before, gap = (_distances_from(ball, center) for center in centers)
    other = gap.argmin(axis=1)
    is_nearer = gap[steps, other] < gap_before[steps, other]
    return [
        _sentences(COLORS[b], _SIDES[s], COLORS[o] if came_nearer else None) if moved else ()
        for b, s, o, came_nearer, moved in zip(
            ball, side, other, is_nearer, distance.max(axis=1) > _LEAST_WAY, strict=True
        )
    ]


def _distances_from(ball: Array, centers: FloatArray) -> FloatArray:
    """From one ball of each step to every ball, shape (B, 5); infinite to itself."""
    steps = np.arange(len(centers))
    offset = centers - centers[steps, ball][:, None]
    distance = np.hypot(offset[..., 0], offset[..., 1])
    distance[steps, ball] = np.inf
    return distance


@cache
def _sentences(ball: str, side: str, other: str | None) -> tuple[str, ...]:
    data = _data()
    words = data["sides"][side]
    moved = [pattern.format(ball=ball, side=words[number % len(words)]) for number, pattern in enumerate(data["moved"])]
    nearer = [pattern.format(ball=ball, other=other) for pattern in data["nearer"]] if other else []
    return (*moved, *nearer)  # no capitals: names that are exchanged are written small everywhere


@cache
def _data() -> Mapping[str, Any]:
    path = Path(__file__).parent / "instructions" / "observed.json"
    data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data
