"""States of a grid of two rooms with things anywhere, for tests that hold in whatever state."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kalm.envs.babyai.layout import COLORS, DOOR_STATES, EMPTY, KINDS, WALL, code_of, put_agent

WIDTH, HEIGHT, DOORWAY = 11, 6, (5, 2)


def random_state(rng: np.random.Generator, num_things: int = 8) -> NDArray[np.uint8]:
    """Two rooms of 4 by 4, a door of any colour and state between them, things, and an agent that may hold one."""
    tiles = np.full((WIDTH, HEIGHT), WALL, dtype=np.uint8)
    tiles[1:5, 1:5] = tiles[6:10, 1:5] = EMPTY
    tiles[DOORWAY] = code_of("door", str(rng.choice(COLORS)), str(rng.choice(DOOR_STATES)))
    free = rng.permutation(np.argwhere(tiles == EMPTY))
    for x, y in free[1 : 1 + num_things]:
        tiles[x, y] = code_of(str(rng.choice(KINDS[:3])), str(rng.choice(COLORS)))
    carried = code_of(str(rng.choice(KINDS[:3])), str(rng.choice(COLORS))) if rng.random() < 0.5 else EMPTY
    return put_agent(tiles, int(free[0][0]), int(free[0][1]), int(rng.integers(4)), carried)


def random_states(num_states: int, seed: int = 0) -> NDArray[np.uint8]:
    """Many of them, shape (N, 11, 6, 2)."""
    rng = np.random.default_rng(seed)
    return np.stack([random_state(rng) for _ in range(num_states)])
