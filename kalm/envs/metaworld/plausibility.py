"""Which transitions the real world could not have made, in the paper's four kinds.

The limits are not guessed: ``limits.json`` holds, rounded, what ``python -m tests.benchmarks.metaworld_limits``
derives from real transitions of the experts, with little and with much noise, and of random actions, in all tasks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kalm.core.goal import Array, BoolArray, FloatArray
from kalm.envs.metaworld.layout import (
    ENTITIES,
    HAND,
    MOVABLE,
    OPENING,
    TARGET,
    finger_tips,
    is_present,
    position,
    quaternion,
)
from kalm.envs.metaworld.tasks import Vector

FLAGS = ("floating_object", "out_of_workbench", "implausible_arm_pose", "beyond_dynamics_limits")
PATH = Path(__file__).parent / "limits.json"


@dataclass(frozen=True)
class EntityLimits:
    """Extremes of one entity in real transitions, in metres; ``low`` and ``high`` are x, y, z."""

    low: Vector
    high: Vector
    max_move: float  # in one step
    max_turn: float  # in one step, as the length of the change of its quaternion
    resting_height: float  # greatest z of what can move while the gripper is away from it; that of ``high`` for others
    held_distance: float  # greatest distance from the finger tips of what can move while it is higher than that


@dataclass(frozen=True)
class PlausibilityLimits:
    """Extremes of real transitions: places of the hand and the target location, opening of the gripper, steps."""

    hand_low: Vector
    hand_high: Vector
    target_low: Vector
    target_high: Vector
    opening_low: float
    opening_high: float
    max_hand_move: float
    max_opening_change: float
    max_target_move: float  # it stands still, but for rounding
    entities: dict[str, EntityLimits]


@cache
def real_limits() -> PlausibilityLimits:
    """The limits that ``limits.json`` holds."""
    data = json.loads(PATH.read_text(encoding="utf-8"))
    entities = {name: EntityLimits(**values) for name, values in data.pop("entities").items()}
    return PlausibilityLimits(**data, entities=entities)


def violations(
    observation: FloatArray, action: Array, next_observation: FloatArray, limits: PlausibilityLimits | None = None
) -> dict[str, BoolArray]:
    """Mark the transitions that break a limit, by default the measured ones, which hold for every action.

    Returns:
        Boolean, shape (...), for each of ``FLAGS``: ``floating_object`` (a thing is off the table with no gripper at
        it, or a mounted one at another height), ``out_of_workbench`` (a thing or the target location lies beyond or
        below the table's used part), ``implausible_arm_pose`` (hand or gripper where the arm cannot bring them) and
        ``beyond_dynamics_limits`` (hand, gripper or a thing changed faster than any step changes them, the target
        location moved, or a thing came into being or vanished).
    """
    limits = limits or real_limits()
    before, after = np.asarray(observation), np.asarray(next_observation)
    floating = np.zeros(after.shape[:-1], dtype=np.bool_)
    target = after[..., TARGET]
    outside = _beyond(target, limits.target_low, limits.target_high).any(axis=-1)
    opening = after[..., OPENING]
    posed_wrongly = _beyond(after[..., HAND], limits.hand_low, limits.hand_high).any(axis=-1)
    posed_wrongly |= (opening < limits.opening_low) | (opening > limits.opening_high)
    too_fast = _moved(before[..., HAND], after[..., HAND]) > limits.max_hand_move
    too_fast |= np.abs(opening - before[..., OPENING]) > limits.max_opening_change
    too_fast |= _moved(before[..., TARGET], target) > limits.max_target_move
    for entity in ENTITIES:
        is_there, was_there = is_present(after, entity), is_present(before, entity)
        too_fast |= is_there != was_there
        if not is_there.any():
            continue
        entity_limits = limits.entities[entity]
        place = position(after, entity)
        floating |= is_there & _floats(after, entity, entity_limits)
        off = _beyond(place[..., :2], entity_limits.low[:2], entity_limits.high[:2]).any(axis=-1)
        outside |= is_there & (off | (place[..., 2] < entity_limits.low[2]))
        fast = _moved(position(before, entity), place) > entity_limits.max_move
        fast |= _moved(quaternion(before, entity), quaternion(after, entity)) > entity_limits.max_turn
        too_fast |= is_there & was_there & fast
    return dict(zip(FLAGS, map(np.asarray, (floating, outside, posed_wrongly, too_fast)), strict=True))


def _floats(observation: FloatArray, entity: str, limits: EntityLimits) -> BoolArray:
    place = position(observation, entity)
    too_high = place[..., 2] > limits.high[2]
    if entity not in MOVABLE:
        return np.asarray(too_high)
    away = np.linalg.norm(place - finger_tips(observation), axis=-1) > limits.held_distance
    return np.asarray(too_high | (away & (place[..., 2] > limits.resting_height)))


def _beyond(values: FloatArray, low: Any, high: Any) -> BoolArray:
    return np.asarray((values < np.asarray(low)) | (values > np.asarray(high)))


def _moved(before: FloatArray, after: FloatArray) -> FloatArray:
    return np.linalg.norm(after - before, axis=-1)
