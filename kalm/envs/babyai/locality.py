"""BabyAI's states taken apart for who learns its dynamics: the agent acts on the tile that it faces.

A configuration is all tiles and what is carried, a pose is (x, y, direction), and a situation is the code of the tile
in front and that of what is carried. What an action does in a situation is not said here.

Shape letters: B states, C configurations, P poses, W columns, H rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Goal
from kalm.envs.babyai.goals import GoTo, GoToTile, Open, PickUp, PutNext
from kalm.envs.babyai.layout import AGENT, EMPTY, FIRST_DOOR, NUM_CODES, STEPS, TILES, WALL, agent_of, in_front
from kalm.envs.locality import NOT_LOCAL, NOWHERE, Aspect, Locality

_CODES = 64  # more than there are codes of tiles
_DIRECTIONS = 4
_ASPECTS: dict[type[Goal], Aspect] = {
    PickUp: "situation",  # what is carried
    GoTo: "situation",  # what is in front
    Open: "configuration",
    PutNext: "arrangement",
    GoToTile: "pose",
}
# Codes of things, whether open or not; a wall is like an empty tile.
_THINGS = np.arange(_CODES, dtype=np.uint8)
_THINGS[FIRST_DOOR:NUM_CODES] -= (_THINGS[FIRST_DOOR:NUM_CODES] - FIRST_DOOR) % 3
_THINGS[WALL] = EMPTY


class GridLocality(Locality):
    """Of grids of one size.

    An effect is a number of four parts: how far the agent turned (4), whether it went one tile ahead (2), the code of
    what is then on the tile that was in front, and the code of what is then carried.
    """

    num_situations = _CODES * _CODES

    def __init__(self, width: int, height: int) -> None:
        """Settle the size of the grids, W by H tiles."""
        self._shape = width, height
        # Exclusive or of a random number for each tile by its code, and one for what is carried (Zobrist hashing).
        rng = np.random.default_rng(0)
        self._numbers = rng.integers(2**64, size=(width * height + 1, _CODES), dtype=np.uint64)
        pose = np.arange(width * height * _DIRECTIONS)
        place, self._direction = np.divmod(pose, _DIRECTIONS)
        x, y = np.divmod(place, height)
        ahead_x, ahead_y = x + STEPS[self._direction, 0], y + STEPS[self._direction, 1]
        self._faces_world = (ahead_x >= 0) & (ahead_x < width) & (ahead_y >= 0) & (ahead_y < height)
        self._place, self._ahead = place, np.where(self._faces_world, ahead_x * height + ahead_y, 0)
        beside = np.stack([ahead_x, ahead_y], axis=-1)[:, None] + STEPS  # of each pose, shape (P, 4, 2)
        is_inside = ((beside >= 0) & (beside < (width, height))).all(axis=-1)
        self._beside = np.where(is_inside, beside @ (height, 1), self._ahead[:, None])

    def situation(self, states: NDArray[Any]) -> NDArray[np.int64]:  # noqa: D102
        return in_front(states) * _CODES + agent_of(states)[3]

    def effect(self, states: NDArray[Any], next_states: NDArray[Any]) -> NDArray[np.int64]:  # noqa: D102
        (before, pose), (after, next_pose) = self.split(states), self.split(next_states)
        rows, ahead = np.arange(len(before)), self._ahead[pose]
        has_stepped = self._place[next_pose] == ahead
        differs = before[:, :-1] != after[:, :-1]
        differs[rows, ahead] = False
        is_local = (has_stepped | (self._place[next_pose] == self._place[pose])) & ~differs.any(axis=1)
        turned = (self._direction[next_pose] - self._direction[pose]) % _DIRECTIONS
        in_front_after, carried_after = after[rows, ahead].astype(np.int64), after[:, -1].astype(np.int64)
        effect = ((carried_after * _CODES + in_front_after) * 2 + has_stepped) * _DIRECTIONS + turned
        return np.where(is_local, effect, NOT_LOCAL)

    def split(self, states: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:  # noqa: D102
        x, y, direction, carried = agent_of(states)
        tiles = states[..., TILES].reshape(len(states), -1)
        configurations = np.concatenate([tiles, carried[:, None].astype(np.uint8)], axis=1)
        return configurations, (x * self._shape[1] + y) * _DIRECTIONS + direction

    def join(self, configurations: NDArray[np.uint8], poses: NDArray[np.int64]) -> NDArray[np.uint8]:  # noqa: D102
        states = np.zeros((len(poses), configurations.shape[1] - 1, 2), dtype=np.uint8)
        states[..., TILES] = configurations[:, :-1]
        carried = configurations[:, -1].astype(np.int64)
        states[np.arange(len(poses)), self._place[poses], AGENT] = 1 + self._direction[poses] + _DIRECTIONS * carried
        return states.reshape(len(poses), *self._shape, 2)

    def names(self, configurations: NDArray[np.uint8]) -> NDArray[np.uint64]:  # noqa: D102
        numbers = self._numbers[np.arange(configurations.shape[1]), configurations]
        return np.asarray(np.bitwise_xor.reduce(numbers, axis=1), dtype=np.uint64)

    def situations(self, configurations: NDArray[np.uint8]) -> NDArray[np.int64]:  # noqa: D102
        front = configurations[:, self._ahead].astype(np.int64)
        return np.where(self._faces_world, front * _CODES + configurations[:, -1:], NOWHERE)

    def outcomes(  # noqa: D102
        self, configurations: NDArray[np.uint8], names: NDArray[np.uint64], effects: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        rest, turned = np.divmod(np.maximum(effects, 0), _DIRECTIONS)
        rest, has_stepped = np.divmod(rest, 2)
        carried_after, front_after = np.divmod(rest, _CODES)
        place = np.where(has_stepped, self._ahead, self._place)
        pose = place * _DIRECTIONS + (self._direction + turned) % _DIRECTIONS
        front, carried = configurations[:, self._ahead], configurations[:, -1:]
        of_front = self._numbers[self._ahead, front] ^ self._numbers[self._ahead, front_after]
        of_carried = self._numbers[-1, carried] ^ self._numbers[-1, carried_after]
        return names[:, None] ^ of_front ^ of_carried, pose

    def after(  # noqa: D102
        self, configurations: NDArray[np.uint8], poses: NDArray[np.int64], effects: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        rest, turned = np.divmod(effects, _DIRECTIONS)
        rest, has_stepped = np.divmod(rest, 2)
        carried_after, front_after = np.divmod(rest, _CODES)
        made = configurations.copy()
        made[np.arange(len(made)), self._ahead[poses]] = front_after
        made[:, -1] = carried_after
        place = np.where(has_stepped, self._ahead[poses], self._place[poses])
        return made, place * _DIRECTIONS + (self._direction[poses] + turned) % _DIRECTIONS

    def carried(self, configurations: NDArray[np.uint8]) -> NDArray[np.int64]:  # noqa: D102
        return configurations[:, -1].astype(np.int64)

    def arrangements(self, configurations: NDArray[np.uint8]) -> NDArray[np.uint64]:  # noqa: D102
        return self.names(_THINGS[configurations])

    def surroundings(self, configurations: NDArray[np.uint8]) -> NDArray[np.int64]:  # noqa: D102
        things = np.sort(_THINGS[configurations[:, self._beside]], axis=-1).astype(np.int64)
        return things @ _CODES ** np.arange(len(STEPS))

    def aspect(self, goal: Goal) -> Aspect:  # noqa: D102
        return _ASPECTS.get(type(goal), "state")
