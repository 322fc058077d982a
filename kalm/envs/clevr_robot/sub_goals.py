"""Which part of a hard goal to pursue next, as the present positions ask for: one placement, or one push.

A placement is undone by whoever moves one of its balls afterwards. So a ball is moved that takes part in no placement
that holds; where that is the target, the placement is asked for the other way round: to have A at the left of B, put B
at the right of A.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kalm.core.goal import FloatArray, Goal
from kalm.envs.clevr_robot.goals import (
    GATHER_DISTANCE,
    ROW_HALF_ANGLE,
    AllOf,
    ClevrRobotGoal,
    GatherGoal,
    MoveGoal,
    PlaceGoal,
    RowGoal,
    ball,
)
from kalm.envs.clevr_robot.layout import COLORS, DIRECTIONS

_OPPOSITE = {"behind": "front", "front": "behind", "left": "right", "right": "left"}
_CENTER = "green"


def next_sub_goal(goal: Goal, observation: FloatArray) -> ClevrRobotGoal | None:
    """The placement or move to pursue from ``observation``, shape (10,); None if ``goal`` has no parts, or all hold."""
    if isinstance(goal, AllOf):
        return _next_placement(goal.goals, observation)
    if isinstance(goal, RowGoal):
        return _next_neighbour(observation)
    if isinstance(goal, GatherGoal):
        return _next_gathered(observation)
    return None


def _next_placement(goals: Sequence[PlaceGoal], observation: FloatArray) -> PlaceGoal | None:
    """A placement that does not hold: if possible of a ball that is free, beside one that need not move any more."""
    unmet = [goal for goal in goals if not goal.success(observation)]
    if not unmet:
        return None
    placed = {color for goal in goals if goal not in unmet for color in (goal.source, goal.target)}
    to_place = {goal.source for goal in unmet}
    ways = [way for goal in unmet for way in (goal, PlaceGoal(goal.target, goal.source, _OPPOSITE[goal.direction]))]
    return min(ways, key=lambda way: (way.source in placed, way.target in to_place - {way.source}))


def _next_neighbour(observation: FloatArray) -> ClevrRobotGoal | None:
    """The first ball that does not follow the one at its left: placed beside it, then pushed into the line."""
    for left, right in zip(COLORS[:-1], COLORS[1:], strict=True):
        across, along = ball(observation, right) - ball(observation, left)
        if abs(np.arctan2(along, across)) <= ROW_HALF_ANGLE:
            continue
        place = PlaceGoal(right, left, "right")
        return MoveGoal(right, "front" if along > 0 else "behind") if place.success(observation) else place
    return None


def _next_gathered(observation: FloatArray) -> ClevrRobotGoal | None:
    """The ball furthest from the green one: placed beside it on its own side, then pushed closer."""
    offsets = {color: ball(observation, color) - ball(observation, _CENTER) for color in COLORS if color != _CENTER}
    color = max(offsets, key=lambda name: float(np.hypot(*offsets[name])))
    if np.hypot(*offsets[color]) < GATHER_DISTANCE:
        return None
    side = max(DIRECTIONS, key=lambda name: float(offsets[color] @ np.array(DIRECTIONS[name])))
    place = PlaceGoal(color, _CENTER, side)
    return MoveGoal(color, _OPPOSITE[side]) if place.success(observation) else place
