"""TEDUO's step 1a: a state seen with one goal in mind, and the features that decide whether the goal is met.

Somebody selects which things a goal is about (a language model in the paper, which names their tiles in one state; here
also the domain's rule in its place), and a fixed function applies the selection to every state:

- a selected thing becomes goal object or goal location, whatever its colour; a selected door keeps its state beside;
- every other thing becomes an obstacle, in the hand as well; every other door loses its colour;
- if all that is selected is in the agent's room, everything outside the room and its walls vanishes.

An abstract state is an array like any other state, with codes of its own, so stores, networks and hashes take it.

Shape letters: ... any batch shape, N states, W columns, H rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.goal import Array, BoolArray
from kalm.envs.babyai.goals import BabyAIGoal, GoTo, GoToTile, Open, Thing
from kalm.envs.babyai.layout import (
    DOOR_STATES,
    EMPTY,
    FIRST_DOOR,
    FIRST_GOAL_DOOR,
    FIRST_KEY,
    FIRST_LOCATION_DOOR,
    FIRST_PLAIN_DOOR,
    GOAL_BOTH,
    GOAL_LOCATION,
    GOAL_OBJECT,
    GOAL_TILE,
    NUM_CODES,
    OBSTACLE,
    TILES,
    WALL,
    agent_of,
    describe,
)

Tile = tuple[int, int]
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Selected:
    """Which things a goal is about; they are known by kind and colour, so that they may move.

    Attributes:
        objects: Goal objects: what is to be picked up, gone to, opened or put.
        locations: Goal locations: what the object is to be put next to.
        tile: The tile to stand on, of a goal that names one.
    """

    objects: frozenset[Thing] = frozenset()
    locations: frozenset[Thing] = frozenset()
    tile: Tile | None = None

    @classmethod
    def at(cls, state: Array, objects: Sequence[Tile], locations: Sequence[Tile] = ()) -> Selected:
        """What stands on tiles of one state, (W, H, 2): a language model's answer, made to hold in every state.

        Raises:
            DataError: If a tile holds nothing to select; only one location may be an empty tile.
        """
        width, height = state.shape[:2]
        things: list[frozenset[Thing]] = []
        empty: list[Tile] = []
        for name, tiles in (("goal object", objects), ("goal location", locations)):
            found = set()
            for x, y in tiles:
                code = int(state[x, y, TILES]) if 0 <= x < width and 0 <= y < height else WALL
                if FIRST_KEY <= code < NUM_CODES:
                    kind, color, _ = describe(code)
                    found.add(Thing(kind, color))
                elif code == EMPTY and name == "goal location" and not empty:
                    empty.append((x, y))
                else:
                    raise DataError(f"{name} is on tile {(x, y)}; it must be a tile on which a thing or a door stands")
            things.append(frozenset(found))
        return cls(things[0], things[1], empty[0] if empty else None)

    def codes(self, part: str) -> Array:
        """Codes of its ``objects`` or ``locations``, of doors in any state."""
        return np.array([code for thing in getattr(self, part) for code in thing.codes], dtype=np.uint8)


def select_by_rule(goal: BabyAIGoal) -> Selected:
    """What the goal itself says that it is about: the oracle's stand-in for a language model's answer."""
    if isinstance(goal, GoToTile):
        return Selected(tile=(goal.x, goal.y))
    objects, *locations = goal.things
    return Selected(frozenset((objects,)), frozenset(locations))


def abstracted(states: Array, selected: Selected, rooms: BoolArray | None = None) -> NDArray[np.uint8]:
    """States, (..., W, H, 2), with one selection in mind, same shape.

    Args:
        states: Concrete states; pieces of a few thousand take half the time of all at once.
        selected: What the goal is about, on a grid that has its tile.
        rooms: ``agents_room(states)``, for whoever asks about the same states for many goals.
    """
    rooms = agents_room(states) if rooms is None else rooms
    table = _abstract_codes(selected)
    tiles = table[np.ascontiguousarray(states[..., TILES])]
    outside = ~rooms
    x, y, direction, carried = agent_of(states)
    is_far = np.zeros(states.shape[:-3], dtype=np.bool_)
    parts = ((selected.objects, GOAL_OBJECT, FIRST_GOAL_DOOR), (selected.locations, GOAL_LOCATION, FIRST_LOCATION_DOOR))
    for things, code, first_door in parts:
        if things:
            places = (tiles == code) | (tiles == GOAL_BOTH) | (tiles - np.uint8(first_door) < len(DOOR_STATES))
            is_there = places.any(axis=(-2, -1)) | np.isin(table[carried], (code, GOAL_BOTH))
            is_far |= ~is_there | (places & outside).any(axis=(-2, -1))
    if selected.tile is not None:
        column = tiles[..., selected.tile[0], selected.tile[1]]
        column[column == EMPTY] = GOAL_TILE
        is_far |= outside[..., selected.tile[0], selected.tile[1]]
    tiles *= is_far[..., None, None] | rooms  # what is multiplied by 0 is EMPTY
    agent = np.zeros(tiles.shape, dtype=np.uint8).reshape(*tiles.shape[:-2], -1)
    marked = 1 + direction + 4 * table[carried].astype(np.int64)
    np.put_along_axis(agent, (x * tiles.shape[-1] + y)[..., None], marked[..., None].astype(np.uint8), axis=-1)
    return np.stack([tiles, agent.reshape(tiles.shape)], axis=-1)


def agents_room(states: Array) -> BoolArray:
    """The room that the agent is in, with its walls and doors, in states (..., W, H, 2), shape (..., W, H).

    In a doorway it is in both rooms. Rooms end at walls and doors, which never move, so that few plans occur.
    """
    tiles = states[..., TILES]
    shape = tiles.shape
    tiles = tiles.reshape(-1, *shape[-2:])
    closed = (tiles == WALL) | ((tiles >= FIRST_DOOR) & (tiles < NUM_CODES))
    x, y, _, _ = (part.reshape(-1) for part in agent_of(states))
    packed = np.packbits(closed.reshape(len(tiles), -1), axis=1)
    rows: dict[bytes, list[int]] = {}
    for row, plan in enumerate(packed):
        rows.setdefault(plan.tobytes(), []).append(row)
    result = np.zeros(tiles.shape, dtype=np.bool_)
    for members in rows.values():
        plan = closed[members[0]]
        places, which = np.unique(np.stack([x[members], y[members]], axis=1), axis=0, return_inverse=True)
        views = np.stack([_room_around(plan, place) for place in places])
        result[members] = views[which.reshape(-1)]
    return result.reshape(shape)


def goal_features(goal: BabyAIGoal, states: Array) -> Keys:
    """Keys, shape (N,), of what decides the goal in states (N, W, H, 2); see ``StateFeatures``."""
    return StateFeatures(states).keys(goal)


class StateFeatures:
    """What states are made of, in a form in which the features that decide any goal are found in milliseconds.

    Two states have the same key for a goal if they agree in all that can decide it (s_phi in the paper): where its
    things are, whether one is in the hand, the state of a door that is to be opened, and, if the goal is about where
    the agent is, its tile and direction. So a judge needs to see only one state of each key.

    Args:
        states: Concrete states, shape (N, W, H, 2).
    """

    def __init__(self, states: Array) -> None:
        """Add up one random number a tile for each code: 64 bits, so that different sets of tiles differ."""
        tiles = states[..., TILES].reshape(len(states), -1)
        numbers = _scramble(np.arange(1, tiles.shape[1] + 1, dtype=np.uint64))
        self._places: Keys = np.zeros((NUM_CODES, len(states)), dtype=np.uint64)
        row, tile = np.nonzero(tiles >= FIRST_KEY)
        np.add.at(self._places, (tiles[row, tile], row), numbers[tile])
        x, y, self._direction, self._carried = agent_of(states)
        self._tile = x * states.shape[2] + y

    def keys(self, goal: BabyAIGoal) -> Keys:
        """One number a state, shape (N,)."""
        selected = select_by_rule(goal)
        parts: list[Array] = []
        if isinstance(goal, GoTo | GoToTile):
            parts.append(self._tile)
        if isinstance(goal, GoTo):
            parts.append(self._direction)
        if isinstance(goal, Open):
            doors = selected.codes("objects")
            parts += [self._sum(doors[(doors - FIRST_DOOR) % 3 == state]) for state in range(len(DOOR_STATES))]
        elif not isinstance(goal, GoToTile):
            for codes in (selected.codes("objects"), selected.codes("locations")):
                parts += [self._sum(codes), np.isin(self._carried, codes)]
        key = np.zeros(len(self._tile), dtype=np.uint64)
        for part in parts:
            key = _scramble(key + part.astype(np.uint64))
        return key

    def _sum(self, codes: Array) -> Keys:
        return self._places[codes].sum(axis=0, dtype=np.uint64)


def shares_left(goal: BabyAIGoal, states: Array) -> dict[str, float]:
    """How much the abstraction leaves of states (N, W, H, 2): the paper's figure B.2.

    Returns:
        ``abstract``: distinct abstract states; ``features``: distinct features that decide the goal; both as shares of
        the distinct states, in (0, 1].
    """
    distinct = _num_distinct(states)
    abstract = _num_distinct(abstracted(states, select_by_rule(goal)))
    features = len(np.unique(goal_features(goal, states)))
    return {"abstract": abstract / distinct, "features": features / distinct}


def _abstract_codes(selected: Selected) -> NDArray[np.uint8]:
    """Abstract code of each concrete code, shape (NUM_CODES,)."""
    table = np.arange(NUM_CODES, dtype=np.uint8)
    doors = np.arange(FIRST_DOOR, NUM_CODES)
    state = (doors - FIRST_DOOR) % len(DOOR_STATES)
    table[FIRST_KEY:FIRST_DOOR] = OBSTACLE
    table[doors] = FIRST_PLAIN_DOOR + state
    objects, locations = (np.isin(np.arange(NUM_CODES), selected.codes(part)) for part in ("objects", "locations"))
    things = np.arange(NUM_CODES) < FIRST_DOOR
    table[objects & things], table[locations & things] = GOAL_OBJECT, GOAL_LOCATION
    table[objects & locations & things] = GOAL_BOTH
    table[doors[locations[doors]]] = FIRST_LOCATION_DOOR + state[locations[doors]]
    table[doors[objects[doors]]] = FIRST_GOAL_DOOR + state[objects[doors]]
    return table


def _room_around(closed: BoolArray, place: Array) -> BoolArray:
    """Tiles reached from a place without crossing a wall or door, and those that touch them, shape (W, H)."""
    inside = np.zeros_like(closed)
    inside[tuple(place)] = True
    size = 0
    while inside.sum() > size:
        size = int(inside.sum())
        inside |= (_wider(inside) | _wider(inside.T).T) & ~closed
    return _wider(_wider(inside).T).T


def _wider(tiles: BoolArray) -> BoolArray:
    """Tiles, and those to the left and right of them."""
    wider = tiles.copy()
    wider[1:] |= tiles[:-1]
    wider[:-1] |= tiles[1:]
    return wider


def _num_distinct(states: Array) -> int:
    return len({state.tobytes() for state in states})


def _scramble(numbers: Keys) -> Keys:
    """Spread numbers over 64 bits so that sums and neighbours do not collide (the finaliser of SplitMix64)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
