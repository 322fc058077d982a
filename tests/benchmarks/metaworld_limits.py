"""Derives the plausibility limits from real transitions.

    python -m tests.benchmarks.metaworld_limits

runs the experts of all tasks with little and with much noise, and random actions, and writes ``limits.json``. It takes
about three minutes on two cores.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import InstructedGoal
from kalm.core.rollout import Rollout
from kalm.envs.metaworld.domain import MetaWorld
from kalm.envs.metaworld.layout import (
    ENTITIES,
    HAND,
    MOVABLE,
    OPENING,
    TARGET,
    FloatArray,
    finger_tips,
    is_present,
    position,
    quaternion,
)
from kalm.envs.metaworld.plausibility import PATH, EntityLimits, PlausibilityLimits
from kalm.envs.simulation import collect_for

# Shapes: N transitions.
TAIL = 0.0005  # share of real values beyond a limit, before the margin
HELD_TAIL = 0.005  # the same of the distance to the gripper, for which dropped things are many among the few lifted
MARGIN = 0.05  # by which a limit is moved outwards, as a share of the range or of the limit
ROUNDING_SLACK = 1e-3  # metres and quaternion units: what standing still may look like after storage or a network
HORIZON = 200  # long enough to see the second stages of the composed tasks
NOISE = {0.1: 40, 0.5: 40, 2.0: 15}  # rollouts a task for each standard deviation; 2 is nearly random
FAR = 0.15  # metres from the finger tips at which nothing is held
SEED = 7


def real_transitions(
    rollouts_of_noise: dict[float, int], seed: int, horizon: int = HORIZON
) -> tuple[FloatArray, NDArray[Any], FloatArray]:
    """Transitions of the experts in all tasks.

    Args:
        rollouts_of_noise: Rollouts a task for each standard deviation of the action noise.
        seed: Seed of all.
        horizon: Steps after which a rollout ends.

    Returns:
        Observations (N, 91), actions (N, 4), next observations (N, 91).
    """
    rollouts: list[Rollout] = []
    for noise, count in rollouts_of_noise.items():
        domain = MetaWorld(action_noise=noise, horizon=horizon)
        goals = list(dict.fromkeys(row.goal for split in domain.goal_splits for row in domain.instructed_goals(split)))
        rows = [InstructedGoal(goal, domain.instruction_for(goal), "train") for goal in goals for _ in range(count)]
        rollouts += collect_for(domain, rows, seed, range(len(rows)))
    before, after = [r.observations[:-1] for r in rollouts], [r.observations[1:] for r in rollouts]
    return np.concatenate(before), np.concatenate([r.actions for r in rollouts]), np.concatenate(after)


def derive_limits(before: FloatArray, after: FloatArray) -> PlausibilityLimits:
    """Limits that all but about ``TAIL`` of real transitions keep, moved outwards by ``MARGIN``.

    Args:
        before: Observations, shape (N, 91).
        after: Next observations, shape (N, 91).
    """
    hand_low, hand_high = _box(after[:, HAND])
    target_low, target_high = _box(after[:, TARGET])
    (opening_low,), (opening_high,) = _box(after[:, [OPENING]])
    return PlausibilityLimits(
        hand_low=hand_low,
        hand_high=hand_high,
        target_low=target_low,
        target_high=target_high,
        opening_low=opening_low,
        opening_high=opening_high,
        max_hand_move=_limit(np.linalg.norm(after[:, HAND] - before[:, HAND], axis=-1)),
        max_opening_change=_limit(np.abs(after[:, OPENING] - before[:, OPENING])),
        max_target_move=_limit(np.linalg.norm(after[:, TARGET] - before[:, TARGET], axis=-1)),
        entities=_on_one_table({entity: _entity_limits(before, after, entity) for entity in ENTITIES}),
    )


def _on_one_table(limits: dict[str, EntityLimits]) -> dict[str, EntityLimits]:
    """What can move may lie wherever something that can move has lain: the table is the same for all."""
    low = np.min([limits[entity].low[:2] for entity in MOVABLE], axis=0)
    high = np.max([limits[entity].high[:2] for entity in MOVABLE], axis=0)
    shared = {
        entity: replace(
            limits[entity],
            low=(float(low[0]), float(low[1]), limits[entity].low[2]),
            high=(float(high[0]), float(high[1]), limits[entity].high[2]),
        )
        for entity in MOVABLE
    }
    return {**limits, **shared}


def _entity_limits(before: FloatArray, after: FloatArray, entity: str) -> EntityLimits:
    there = is_present(after, entity)
    before, after = before[there], after[there]
    place = position(after, entity)
    low, high = _box(place)
    resting_height, held_distance = high[2], 0.0
    if entity in MOVABLE:
        tip_distance = np.linalg.norm(place - finger_tips(after), axis=-1)
        resting_height = _round(float(np.quantile(place[tip_distance > FAR, 2], 1 - 2 * TAIL)) + 0.01)
        is_up = place[:, 2] > resting_height
        held_distance = _limit(tip_distance[is_up], HELD_TAIL) if is_up.any() else 0.0
    return EntityLimits(
        low=low,
        high=high,
        max_move=_limit(np.linalg.norm(place - position(before, entity), axis=-1)),
        max_turn=_limit(np.linalg.norm(quaternion(after, entity) - quaternion(before, entity), axis=-1)),
        resting_height=resting_height,
        held_distance=held_distance,
    )


def _box(values: FloatArray) -> tuple[Any, Any]:
    low, high = np.quantile(values, (TAIL, 1 - TAIL), axis=0)
    margin = MARGIN * (high - low) + ROUNDING_SLACK
    return tuple(map(_round, low - margin)), tuple(map(_round, high + margin))


def _limit(values: FloatArray, tail: float = TAIL) -> float:
    return _round(float(np.quantile(values, 1 - tail)) * (1 + MARGIN) + ROUNDING_SLACK)


def _round(value: float) -> float:
    return round(float(value), 4)


if __name__ == "__main__":
    first, _, second = real_transitions(NOISE, SEED)
    PATH.write_text(json.dumps(asdict(derive_limits(first, second)), indent=1) + "\n", encoding="utf-8")
