"""The expert for placements: push as if balls slid straight, and take the push that leaves the least way to go.

A kinematic guess of where each push leads (a slide of fixed length, stopped by walls, shoving what is in the way) is
good enough to need no simulator nearly always. It depends on the observation and the goal alone and changes smoothly
with them, which is what makes it easy to learn from. In a jam of balls and walls the guess can be wrong for ever, so
after a push that moved nothing the next one is chosen by what the simulator says of each. That is rare, but it spares
the data the long, hopeless rollouts that a cloned policy would learn to repeat.

Shapes: B batch, C = 16 candidate pushes, eight of the source and eight of the target ball. A placement is three
numbers, each of shape (B,): which ball is the source, which the target, and which of ``DIRECTIONS`` is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import FloatArray, Goal
from kalm.envs.clevr_robot.goals import PlaceGoal
from kalm.envs.clevr_robot.layout import (
    BALL_RADIUS,
    COLORS,
    DIRECTIONS,
    NUM_ACTIONS,
    NUM_BALLS,
    OBSERVATION_SIZE,
    PUSH_DIRECTIONS,
    WALL_X,
    WALL_Y,
)

Indices = NDArray[np.int64]

SLIDE_LENGTH = 0.2  # how far a push is taken to move a ball; the median of free pushes is 0.19 to 0.25
SPOT_DISTANCE = 0.32  # centre of the source to centre of the target, aimed at
CLEARANCE = 2 * BALL_RADIUS + 0.01  # a way that passes a ball nearer than this is blocked
# What stands in the way, as extra way to go for each unit of length it intrudes.
TARGET_IN_THE_WAY = 2.0
OTHER_IN_THE_WAY = 0.5
SPOT_BEHIND_WALL = 0.5
# So that the target is moved only where the source alone cannot do it: whoever reads a rollout takes the ball that is
# pushed for the one that the instruction is about.
PUSHING_THE_TARGET = 0.3
MIN_TRAVEL = 0.03  # a push that moves its ball less has failed
MIN_CHANGE = 0.1  # a push that moves no ball this far along an axis is not worth trying after a failed one
_SHOVES = 3  # rounds of shoving overlapping balls apart

_UNIT_PUSHES = PUSH_DIRECTIONS / np.linalg.norm(PUSH_DIRECTIONS, axis=1, keepdims=True)
_LOWEST = np.array([WALL_X[0], WALL_Y[0]]) + BALL_RADIUS
_HIGHEST = np.array([WALL_X[1], WALL_Y[1]]) - BALL_RADIUS


class Expert:
    """Acts in many episodes at once, by guess or, where the last push moved nothing, by looking ahead."""

    def __init__(
        self,
        try_actions: Callable[[Indices, Indices], FloatArray],
        goals: Sequence[Goal],
        luck: Sequence[np.random.Generator],
        action_noise: float,
    ) -> None:
        """Plan for some episodes; none has begun.

        Args:
            try_actions: ``ClevrRobotVectorEnv.try_actions`` of where they run.
            goals: Of each episode, placements all.
            luck: Source of chance of each episode.
            action_noise: Share of uniformly random actions.
        """
        self._try_actions, self._luck, self._action_noise = try_actions, luck, action_noise
        placements = [goal for goal in goals if isinstance(goal, PlaceGoal)]
        if len(placements) < len(goals):
            raise TypeError("the expert solves placements only, and the training goals hold others")
        names = list(DIRECTIONS)
        self._task = np.array(
            [(COLORS.index(g.source), COLORS.index(g.target), names.index(g.direction)) for g in placements]
        )
        self._last_observation = np.zeros((len(goals), OBSERVATION_SIZE))
        self._last_action = np.full(len(goals), -1)  # none yet

    def __call__(self, observation: FloatArray, episodes: list[int], info: dict[str, Any]) -> Indices:
        """Actions, shape (B,), for what is seen in some episodes now, shape (B, 10)."""
        source, target, direction = self._task[episodes].T
        action = place_action(observation, source, target, direction)
        before, pushed = self._last_observation[episodes], self._last_action[episodes]
        stuck = np.flatnonzero((pushed >= 0) & has_failed(before, pushed, observation))
        if len(stuck):
            rows = np.array(info["row"])[stuck]
            outcome = self._try_actions(rows, _candidate_pushes(source[stuck], target[stuck]))
            task = source[stuck], target[stuck], direction[stuck]
            action[stuck] = _look_ahead_action(observation[stuck], outcome, *task)
        for place, episode in enumerate(episodes if self._action_noise > 0 else ()):
            if self._luck[episode].random() < self._action_noise:
                action[place] = self._luck[episode].integers(NUM_ACTIONS)
        self._last_observation[episodes], self._last_action[episodes] = observation, action
        return action


def place_action(observation: FloatArray, source: Indices, target: Indices, direction: Indices) -> Indices:
    """The push to make next, of the source ball or of the target ball, shape (B,), seeing what has shape (B, 10)."""
    candidates = _candidate_pushes(source, target)
    cost = _way_to_go(_predict_push(observation, candidates), source, target, direction)
    cost[:, len(PUSH_DIRECTIONS) :] += PUSHING_THE_TARGET
    return _cheapest(candidates, cost)


def _look_ahead_action(
    observation: FloatArray, outcome: FloatArray, source: Indices, target: Indices, direction: Indices
) -> Indices:
    """The push to make where the guess has failed, by what the simulator makes of each candidate, shape (B, C, 10)."""
    cost = _way_to_go(outcome.reshape(*outcome.shape[:2], NUM_BALLS, 2), source, target, direction)
    changes = np.abs(outcome - observation[:, None]).max(axis=-1) >= MIN_CHANGE
    return _cheapest(_candidate_pushes(source, target), np.where(changes, cost, np.inf))


def has_failed(observation: FloatArray, action: Indices, next_observation: FloatArray) -> NDArray[np.bool_]:
    """Whether each push left its ball where it was, shape (B,)."""
    moved = (next_observation - observation).reshape(-1, NUM_BALLS, 2)
    moved = moved[np.arange(len(action)), action // len(PUSH_DIRECTIONS)]
    return np.linalg.norm(moved, axis=-1) < MIN_TRAVEL


def _candidate_pushes(source: Indices, target: Indices) -> Indices:
    """All pushes of the source ball, then all of the target ball, as actions, shape (B, C)."""
    num_pushes = len(PUSH_DIRECTIONS)
    ball = np.repeat(np.stack([source, target], axis=1), num_pushes, axis=1)
    return ball * num_pushes + np.tile(np.arange(num_pushes), 2)


def _cheapest(candidates: Indices, cost: FloatArray) -> Indices:
    return np.take_along_axis(candidates, cost.argmin(axis=1)[:, None], axis=1)[:, 0]


def _predict_push(observation: FloatArray, candidates: Indices) -> FloatArray:
    """Where the balls will be after each candidate push by the kinematic guess, centres of shape (B, C, 5, 2)."""
    pushed, push = np.divmod(candidates, len(PUSH_DIRECTIONS))
    centers = np.repeat(observation.reshape(-1, 1, NUM_BALLS, 2), candidates.shape[1], axis=1)
    row, column = np.indices(candidates.shape)
    centers[row, column, pushed] += _UNIT_PUSHES[push] * SLIDE_LENGTH
    centers = np.clip(centers, _LOWEST, _HIGHEST)
    is_pushed = np.arange(NUM_BALLS) == pushed[..., None]
    for _ in range(_SHOVES):
        # The others give way as far as walls allow; what overlap is left stops the pushed ball instead.
        centers = np.clip(centers + _overlap(centers, centers[row, column, pushed], is_pushed), _LOWEST, _HIGHEST)
        left = _overlap(centers, centers[row, column, pushed], is_pushed)
        centers[row, column, pushed] -= left.sum(axis=2)
    return centers


def _overlap(centers: FloatArray, of: FloatArray, is_pushed: NDArray[np.bool_]) -> FloatArray:
    """How far, and which way, each other ball must go to touch the pushed one no more, shape (B, C, 5, 2)."""
    offset = centers - of[:, :, None]
    distance = np.linalg.norm(offset, axis=-1)
    overlap = np.where(is_pushed, 0.0, np.maximum(0.0, 2 * BALL_RADIUS - distance))
    return offset * (overlap / np.maximum(distance, 1e-6))[..., None]


def _way_to_go(centers: FloatArray, source: Indices, target: Indices, direction: Indices) -> FloatArray:
    """Distance from the source to its spot, longer where walls or balls stand in the way, shape (B, C)."""
    row = np.arange(len(centers))
    start, goal = centers[row, :, source], centers[row, :, target]
    spot = goal + SPOT_DISTANCE * np.array(list(DIRECTIONS.values()))[direction][:, None]
    way = np.linalg.norm(start - spot, axis=-1)
    way += SPOT_BEHIND_WALL * np.linalg.norm(spot - np.clip(spot, _LOWEST, _HIGHEST), axis=-1)
    for ball in range(len(COLORS)):
        price = np.where(ball == target, TARGET_IN_THE_WAY, OTHER_IN_THE_WAY) * (ball != source)
        passing = _distance_to_segment(centers[:, :, ball], start, spot)
        way += price[:, None] * np.maximum(0.0, CLEARANCE - passing)
    return way


def _distance_to_segment(point: FloatArray, start: FloatArray, end: FloatArray) -> FloatArray:
    """Distance of points from the segments between start and end, all of shape (..., 2)."""
    along = end - start
    length_squared = np.maximum((along**2).sum(axis=-1), 1e-9)
    share = np.clip(((point - start) * along).sum(axis=-1) / length_squared, 0.0, 1.0)
    return np.linalg.norm(start + share[..., None] * along - point, axis=-1)
