"""Facts about the CLEVR-Robot world that all its parts share: colours, sizes, directions, starts, symmetries."""

from __future__ import annotations

import math
from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from kalm.envs.symmetry import Symmetry

COLORS = ("red", "blue", "green", "purple", "cyan")  # the order of an observation: x and y of each ball in turn
RGB = {
    "red": (1.0, 0.1, 0.1),
    "blue": (0.2, 0.5, 1.0),
    "green": (0.2, 1.0, 0.0),
    "purple": (0.8, 0.2, 1.0),
    "cyan": (0.2, 1.0, 1.0),
}
NUM_BALLS = len(COLORS)
OBSERVATION_SIZE = 2 * NUM_BALLS
BALL_RADIUS = 0.13

# Unit vectors of the four sides and moves, seen from above with +y away from the viewer.
DIRECTIONS = {"behind": (0.0, 1.0), "left": (-1.0, 0.0), "front": (0.0, -1.0), "right": (1.0, 0.0)}

# The eight pushes; the action is the ball's index times eight plus the push's index. The diagonal ones are the
# original's: 0.8 along each axis.
PUSH_DIRECTIONS = np.array(
    [(1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8)]
)
NUM_ACTIONS = NUM_BALLS * len(PUSH_DIRECTIONS)

# Walls as MuJoCo planes: name, position, rotation. Planes at x = -0.6 and 0.6, y = 0.7 and -0.3.
WALLS = (
    ("wall_left", "-0.6 0 0", "0 1.57 0"),
    ("wall_right", "0.6 0 0", "0 -1.57 0"),
    ("wall_back", "0 0.7 0", "1.57 0 0"),
    ("wall_front", "0 -0.3 0", "-1.57 0 0"),
)
WALL_X = (-0.6, 0.6)
WALL_Y = (-0.3, 0.7)

# Where balls are put at a reset.
RESET_X = (-0.5, 0.5)
RESET_Y = (-0.3, 0.5)
MIN_RESET_DISTANCE = 0.36
MIN_RESET_AXIS_OFFSET = 0.01  # unless it is exactly zero: a nearly aligned pair is rejected
MAX_RESET_TRIES = 10  # positions tried for a ball before all balls are placed anew


def sample_layout(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw ball centres for a reset, shape (10,): apart from each other, and no pair nearly but not exactly aligned."""
    centers: list[tuple[float, float]] = []
    while len(centers) < NUM_BALLS:
        for _ in range(MAX_RESET_TRIES):
            across, along = rng.random(2).tolist()
            x = RESET_X[0] + (RESET_X[1] - RESET_X[0]) * across
            y = RESET_Y[0] + (RESET_Y[1] - RESET_Y[0]) * along
            if all(_is_apart(abs(x - other_x), abs(y - other_y)) for other_x, other_y in centers):
                centers.append((x, y))
                break
        else:
            centers = []
    return np.array(centers).ravel()


def _is_apart(x: float, y: float) -> bool:
    """Whether two centres whose offset is so large along each axis may be in one layout."""
    nearly_aligned = 0 < x < MIN_RESET_AXIS_OFFSET or 0 < y < MIN_RESET_AXIS_OFFSET
    return math.hypot(x, y) >= MIN_RESET_DISTANCE and not nearly_aligned


@cache
def ball_permutations() -> tuple[Symmetry, ...]:
    """All 120 orders of the balls, which differ in colour only; the first changes nothing."""
    return tuple(_exchange(np.array(order)) for order in permutations(range(NUM_BALLS)))


def _exchange(order: NDArray[np.int64]) -> Symmetry:
    """Ball i takes the place, and so the name, of what was ball ``order[i]``."""
    new_of_old = np.argsort(order)
    balls, pushes = np.divmod(np.arange(NUM_BALLS * len(PUSH_DIRECTIONS)), len(PUSH_DIRECTIONS))
    return Symmetry(
        observation_order=(2 * order[:, None] + np.arange(2)).reshape(-1),
        action_of=new_of_old[balls] * len(PUSH_DIRECTIONS) + pushes,
        word_of={COLORS[old]: COLORS[new] for old, new in enumerate(new_of_old) if old != new},
    )
