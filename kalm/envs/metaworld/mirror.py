"""Left and right exchanged: the hand obeys the same laws in a mirror, and so does what it pushes, pulls and turns.

A rollout of the mirror world has the other side's motions, such as a window that slides to the left. Its furniture may
not exist here, which is why these are mirror images and no relabellings.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from kalm.envs.metaworld.layout import ACTION_SIZE, ENTITIES, HAND, OBSERVATION_SIZE, TARGET, pose_slice
from kalm.envs.symmetry import Relabelling

_SIDES = {"left": "right", "right": "left", "leftwards": "rightwards", "rightwards": "leftwards"}


@cache
def mirror_images() -> tuple[Relabelling, ...]:
    """The world as it is, and mirrored at the plane x = 0 through the middle of the table."""
    order, same = np.arange(OBSERVATION_SIZE), np.ones(ACTION_SIZE, np.float32)
    action_sign = same.copy()
    action_sign[0] = -1
    return Relabelling(order, same, {}), Relabelling(order, action_sign, _SIDES, _observation_sign())


def _observation_sign() -> np.ndarray:
    """-1 for x, and for the parts of a quaternion (w, x, y, z) that turn about the axes within the mirror's plane."""
    sign = np.ones(OBSERVATION_SIZE, np.float32)
    for place in (HAND, TARGET, *map(pose_slice, ENTITIES)):
        sign[place.start] = -1
    for pose in map(pose_slice, ENTITIES):
        sign[pose.start + 5 : pose.stop] = -1
    return sign
