"""Says of a step which ball moved, and where to: what anybody sees who knows the balls by name and left from right.

No goal's rule is asked. What it takes to know is which numbers of an observation are the x and y of which ball, and
which way the axes point; that a step did what a goal asks for, nothing here says.

Shape letters: B steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from kalm.core.goal import Array, FloatArray
from kalm.envs.clevr_robot.instructions import moved_sentences, nearer_sentences
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
    moved = distance.max(axis=1) > _LEAST_WAY
    return [
        _said(COLORS[ball[step]], _SIDES[side[step]], COLORS[other[step]] if is_nearer[step] else None)
        if moved[step]
        else ()
        for step in steps.tolist()
    ]


@cache
def _said(ball: str, side: str, other: str | None) -> tuple[str, ...]:
    return moved_sentences(ball, side) + (nearer_sentences(ball, other) if other else ())


def _distances_from(ball: Array, centers: FloatArray) -> FloatArray:
    """From one ball of each step to every ball, shape (B, 5); infinite to itself."""
    steps = np.arange(len(centers))
    offset = centers - centers[steps, ball][:, None]
    distance = np.hypot(offset[..., 0], offset[..., 1])
    distance[steps, ball] = np.inf
    return distance
