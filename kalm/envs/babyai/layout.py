"""How a state of a grid world lies in an array of small integers: what is on each tile, and the agent in its own plane.

A state is the whole grid, fully observed: uint8 of shape (W, H, 2), x before y, the origin at the top left. Plane
``TILES`` holds one code a tile: what stands there, its colour and, of a door, whether it is open. Plane ``AGENT`` is 0
but for the agent's tile, which holds 1 + direction + 4 * the code of what it carries. Directions are minigrid's: 0 is
right (x + 1), 1 down (y + 1), 2 left, 3 up. Actions are minigrid's seven.

Shape letters: ... any batch shape, W columns, H rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TILES, AGENT = 0, 1  # planes of a state

COLORS = ("red", "green", "blue", "purple", "yellow", "grey")  # numbered as in minigrid
KINDS = ("key", "ball", "box", "door")  # what a sentence can name
DOOR_STATES = ("open", "closed", "locked")

LEFT, RIGHT, FORWARD, PICK_UP, DROP, TOGGLE, DONE = range(7)
NUM_ACTIONS = 7
STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # what a step forward adds to (x, y), by direction

# Codes of tiles. A thing that can be carried is FIRST_KEY, FIRST_BALL or FIRST_BOX plus its colour; a door is
# FIRST_DOOR plus 3 times its colour plus its state. Code 0 is an empty tile, and in a hand an empty hand.
EMPTY, WALL = 0, 1
FIRST_KEY, FIRST_BALL, FIRST_BOX, FIRST_DOOR = 2, 8, 14, 20
NUM_CODES = 38

# Codes of abstract states only (TEDUO, section 3.1.1): things by the part that they play in a goal. Of doors there are
# three each, by state. GOAL_TILE is the free tile to stand on; GOAL_BOTH may be put next to another of its like.
GOAL_OBJECT, GOAL_LOCATION, GOAL_BOTH, GOAL_TILE, OBSTACLE = range(NUM_CODES, NUM_CODES + 5)
FIRST_PLAIN_DOOR, FIRST_GOAL_DOOR, FIRST_LOCATION_DOOR = 43, 46, 49
NUM_ABSTRACT_CODES = 52
_FIRST = {"key": FIRST_KEY, "ball": FIRST_BALL, "box": FIRST_BOX}


def code_of(kind: str, color: str, door_state: str = "closed") -> int:
    """Code of a thing, such as a red key."""
    number = COLORS.index(color)
    return FIRST_DOOR + 3 * number + DOOR_STATES.index(door_state) if kind == "door" else _FIRST[kind] + number


def describe(code: int) -> tuple[str, str, str]:
    """Kind, colour and state of a thing by its code; the state is empty but for doors.

    Raises:
        ValueError: If the code is that of nothing, of a wall, or of no tile at all.
    """
    if FIRST_KEY <= code < FIRST_DOOR:
        number, color = divmod(code - FIRST_KEY, 6)
        return KINDS[number], COLORS[color], ""
    if FIRST_DOOR <= code < NUM_CODES:
        color, state = divmod(code - FIRST_DOOR, 3)
        return "door", COLORS[color], DOOR_STATES[state]
    raise ValueError(f"code is {code}; things have codes in [{FIRST_KEY}, {NUM_CODES})")


def codes_matching(kind: str, color: str | None = None) -> NDArray[np.uint8]:
    """Codes of all things of a kind and, unless it is None, a colour; of doors in any state."""
    states = DOOR_STATES if kind == "door" else ("",)
    colors = COLORS if color is None else (color,)
    return np.array([code_of(kind, one, state) for one in colors for state in states], dtype=np.uint8)


def agent_of(states: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Where the agent is in states (..., W, H, 2): x, y, direction and the code of what it carries, each (...)."""
    plane = states[..., AGENT]
    flat = plane.reshape(*plane.shape[:-2], -1)
    place = flat.argmax(axis=-1)
    marked = np.take_along_axis(flat, place[..., None], axis=-1)[..., 0].astype(np.int64) - 1
    x, y = np.divmod(place, plane.shape[-1])
    return x, y, marked % 4, marked // 4


def put_agent(tiles: NDArray[Any], x: int, y: int, direction: int, carried: int = EMPTY) -> NDArray[np.uint8]:
    """The state, (W, H, 2), of tiles (W, H) and an agent on one of them."""
    state = np.stack([tiles, np.zeros_like(tiles)], axis=-1).astype(np.uint8)
    state[x, y, AGENT] = 1 + direction + 4 * carried
    return state


def in_front(states: NDArray[Any]) -> NDArray[np.int64]:
    """Code of the tile that the agent faces in states (..., W, H, 2), shape (...)."""
    x, y, direction, _ = agent_of(states)
    tiles = states[..., TILES]
    width, height = tiles.shape[-2:]
    flat = tiles.reshape(*tiles.shape[:-2], width * height)
    place = (x + STEPS[direction, 0]) * height + y + STEPS[direction, 1]
    return np.take_along_axis(flat, place[..., None], axis=-1)[..., 0].astype(np.int64)
