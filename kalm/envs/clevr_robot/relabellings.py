"""The balls of CLEVR-Robot differ in colour only: exchange colours everywhere, and a rollout stays true."""

from __future__ import annotations

from functools import cache
from itertools import permutations

import numpy as np

from kalm.envs.clevr_robot.layout import COLORS, NUM_BALLS, PUSH_DIRECTIONS
from kalm.envs.symmetry import Relabelling


@cache
def ball_permutations() -> tuple[Relabelling, ...]:
    """All 120 orders of the balls; the first changes nothing."""
    return tuple(_relabelling(np.array(order)) for order in permutations(range(NUM_BALLS)))


def _relabelling(order: np.ndarray) -> Relabelling:
    """Ball i takes the place, and so the name, of what was ball ``order[i]``."""
    new_of_old = np.argsort(order)
    balls, pushes = np.divmod(np.arange(NUM_BALLS * len(PUSH_DIRECTIONS)), len(PUSH_DIRECTIONS))
    return Relabelling(
        observation_order=(2 * order[:, None] + np.arange(2)).reshape(-1),
        action_of=new_of_old[balls] * len(PUSH_DIRECTIONS) + pushes,
        word_of={COLORS[old]: COLORS[new] for old, new in enumerate(new_of_old) if old != new},
    )
