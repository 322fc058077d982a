"""Where an episode of a goal can begin: in which grids, and there on which tiles, so that it can be met.

What an agent can reach is a flood through everything that it can move or open: things can be carried out of the way,
and a locked door opens where its key can be reached.

Shape letters: W columns, H rows, N tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.envs.babyai.goals import BabyAIGoal, GoToTile, Open, PutNext
from kalm.envs.babyai.grids import Grid
from kalm.envs.babyai.layout import EMPTY, FIRST_BALL, FIRST_DOOR, FIRST_KEY, NUM_CODES, STEPS, WALL, put_agent

_OPEN, _LOCKED = 0, 2
_STEPS = [(int(x), int(y)) for x, y in STEPS]


class Places:
    """Grids as places to begin in.

    A *region* is the tiles of one grid from which the same tiles can be reached.

    Args:
        grids: One or more, all of one size.
    """

    def __init__(self, grids: Sequence[Grid]) -> None:
        """Find out what can be reached from where."""
        self.grids = tuple(grids)
        found = [(number, *region) for number, grid in enumerate(self.grids) for region in _regions(grid)]
        self._grid_of_region = np.array([number for number, *_ in found])
        self._starts_of_region = [starts for _, starts, *_ in found]
        tiles = np.stack([self.grids[number].tiles for number, *_ in found])
        is_reached = np.stack([reached for *_, reached, _ in found])
        is_faced = np.stack([faced for *_, faced in found])
        self._is_floor = is_reached & (tiles == EMPTY)  # (regions, W, H)
        # How many things of each code there are, can be faced, and can be faced and opened, (regions, codes).
        self._num_all, self._num_faced, self._num_opened = (
            np.stack([np.bincount(own[chosen], minlength=NUM_CODES) for own, chosen in zip(tiles, where, strict=True)])
            for where in (np.ones_like(is_reached), is_faced, is_reached)
        )
        self._are_beside = np.stack([_beside(grid.tiles) for grid in self.grids])[self._grid_of_region]
        self._starts_of_goal: dict[BabyAIGoal, list[tuple[int, NDArray[np.int64]]]] = {}

    def starts(self, goal: BabyAIGoal) -> list[tuple[int, NDArray[np.int64]]]:
        """Indices of the grids in which a goal can be met, each with the tiles, (N, 2), to begin on.

        A grid in which it is met wherever the agent begins is none of them.
        """
        if goal not in self._starts_of_goal:
            starts_of_grid: dict[int, list[NDArray[np.int64]]] = {}
            for region in np.flatnonzero(self._can_be_met(goal)).tolist():
                own = starts_of_grid.setdefault(int(self._grid_of_region[region]), [])
                own.append(self._starts_of_region[region])
            self._starts_of_goal[goal] = [(number, np.concatenate(own)) for number, own in starts_of_grid.items()]
        return self._starts_of_goal[goal]

    def draw(self, goal: BabyAIGoal, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A state, (W, H, 2), that an episode can begin in: any grid, tile and direction alike; hands are empty.

        Raises:
            DataError: If the goal can be met in none of the grids.
        """
        found = self.starts(goal)
        if not found:
            raise DataError(f"goal {goal} can be met in none of {len(self.grids)} grids; ask for more of them")
        number, starts = found[rng.integers(len(found))]
        x, y = starts[rng.integers(len(starts))].tolist()
        return put_agent(self.grids[number].tiles, x, y, int(rng.integers(4)))

    def _can_be_met(self, goal: BabyAIGoal) -> NDArray[np.bool_]:
        """Of each region, shape (regions,)."""
        if isinstance(goal, GoToTile):
            _, width, height = self._is_floor.shape
            is_inside = goal.x < width and goal.y < height
            return self._is_floor[:, goal.x, goal.y] if is_inside else np.zeros(len(self._is_floor), dtype=np.bool_)
        codes, faced = goal.things[0].codes, self._num_faced
        if isinstance(goal, Open):
            is_open = self._num_all[:, codes[(codes - FIRST_DOOR) % 3 == _OPEN]].any(axis=1)
            return np.asarray(self._num_opened[:, codes].any(axis=1) & ~is_open)
        can_be_faced = np.asarray(faced[:, codes].any(axis=1))
        if not isinstance(goal, PutNext):
            return can_be_faced
        others = goal.place.codes
        is_met = self._are_beside[:, codes[:, None], others].any(axis=(1, 2))
        are_two = faced[:, np.union1d(codes, others)].sum(axis=1) > 1
        return np.asarray(can_be_faced & faced[:, others].any(axis=1) & are_two & ~is_met)


def _beside(tiles: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether a tile of one code is a step from one of another, (codes, codes)."""
    are_beside = np.zeros((NUM_CODES, NUM_CODES), dtype=np.bool_)
    for one, other in ((tiles[1:], tiles[:-1]), (tiles[:, 1:], tiles[:, :-1])):
        are_beside[one, other] = are_beside[other, one] = True
    return are_beside


def _regions(grid: Grid) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]]:
    """Of each region where to begin, (N, 2), and which tiles can be reached and faced, (W, H)."""
    left = grid.starts
    while len(left):
        x, y = left[0].tolist()
        # Whoever can come to each other without a key come to the same tiles with one.
        is_here = _flood(grid.tiles, x, y, has_keys=False)[left[:, 0], left[:, 1]]
        is_reached = _flood(grid.tiles, x, y, has_keys=True)
        is_faced = is_reached.copy()
        for step in _STEPS:
            is_faced |= np.roll(is_reached, step, axis=(0, 1))
        yield left[is_here], is_reached, is_faced
        left = left[~is_here]


def _flood(tiles: NDArray[np.uint8], x: int, y: int, has_keys: bool) -> NDArray[np.bool_]:
    """Tiles, (W, H), that an agent on one of them can come to, with the keys that it finds or without."""
    is_reached = np.zeros(tiles.shape, dtype=np.bool_)
    keys: set[int] = set()
    locked: dict[int, list[tuple[int, int]]] = {}  # doors that were met, by the code of their key
    waiting = [(x, y)]
    while waiting:
        place = waiting.pop()
        code = int(tiles[place])
        if is_reached[place] or code == WALL:
            continue
        color, state = divmod(code - FIRST_DOOR, 3) if code >= FIRST_DOOR else (0, _OPEN)
        key = FIRST_KEY + color
        if state == _LOCKED and key not in keys:
            locked.setdefault(key, []).append(place)
            continue
        is_reached[place] = True
        if has_keys and FIRST_KEY <= code < FIRST_BALL:
            keys.add(code)
            waiting += locked.pop(code, [])
        waiting += [(place[0] + dx, place[1] + dy) for dx, dy in _STEPS]
    return is_reached
