"""The 91 numbers of an observation: gripper, target location, and the pose of twelve entities (KALM, appendix).

Lengths are metres in Meta-World's frame: +x right, +y away from the robot, +z up, the table top at z = 0. Quaternions
are (w, x, y, z). An entity that is not in the scene is seven zeros; a real quaternion never is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from kalm.core.goal import BoolArray, FloatArray
from kalm.envs.symmetry import Symmetry

# Shapes: ... any batch shape.

ENTITIES = (
    "target_object", "button", "lock", "handle", "window", "faucet",
    "wall", "coffee_mug", "coffee_button", "hammer", "nail", "soccer_ball",
)  # fmt: skip
MOVABLE = ("target_object", "coffee_mug", "hammer", "soccer_ball")  # can lie anywhere; the others are mounted
HAND = slice(0, 3)  # the wrist body that Meta-World calls the hand
OPENING = 3  # of the gripper, 0 closed to 1 open
TARGET = slice(4, 7)
FIRST_ENTITY = 7
POSE_SIZE = 7
OBSERVATION_SIZE = FIRST_ENTITY + POSE_SIZE * len(ENTITIES)
ACTION_SIZE = 4  # three offsets of the hand, one effort of the gripper

# From the hand to the point between the finger tips, which Meta-World's rules measure from. The arm gives way a little
# under load, so this holds to about 3 mm; the share in y grows as the gripper closes.
_TIP_OFFSET = np.array([0.0, 0.0070, -0.0448])
_TIP_OFFSET_OPENING = np.array([0.0, -0.0083, 0.0])


def pose_slice(entity: str) -> slice:
    """Where the pose of an entity lies."""
    first = FIRST_ENTITY + POSE_SIZE * ENTITIES.index(entity)
    return slice(first, first + POSE_SIZE)


def position(observation: FloatArray, entity: str) -> FloatArray:
    """Position of an entity, shape (..., 3)."""
    return observation[..., pose_slice(entity)][..., :3]


def quaternion(observation: FloatArray, entity: str) -> FloatArray:
    """Orientation of an entity, (w, x, y, z), shape (..., 4)."""
    return observation[..., pose_slice(entity)][..., 3:]


def is_present(observation: FloatArray, entity: str) -> BoolArray:
    """Whether an entity is in the scene, shape (...): its quaternion is nearer to length 1 than to 0."""
    return np.asarray(np.linalg.norm(quaternion(observation, entity), axis=-1) > 0.5)


def finger_tips(observation: FloatArray) -> FloatArray:
    """Point between the finger tips, from hand and opening, shape (..., 3)."""
    return observation[..., HAND] + _TIP_OFFSET + observation[..., OPENING, None] * _TIP_OFFSET_OPENING


def lock_angle(observation: FloatArray) -> FloatArray:
    """Angle of the bolt's lever against the door it sits on, shape (...): about 1.57 locked, 0 unlocked."""
    w, x, y, z = np.moveaxis(quaternion(observation, "handle"), -1, 0)
    lever_w, lever_x, lever_y, lever_z = np.moveaxis(quaternion(observation, "lock"), -1, 0)
    # The parts w and y of conjugate(handle) * lock: the lever turns about the y axis of the door.
    turned_w = w * lever_w + x * lever_x + y * lever_y + z * lever_z
    turned_y = w * lever_y + x * lever_z - y * lever_w - z * lever_x
    return np.abs(2.0 * np.arctan(turned_y / np.where(np.abs(turned_w) < 1e-9, 1e-9, turned_w)))


# What a hand grips, pushes and carries as it does the puck, and the words for it in place of the puck's. The shapes
# differ, and so does how well a grip holds.
_LIKE_THE_PUCK = {
    "soccer_ball": {"red puck": "soccer ball", "puck": "ball", "red cylinder": "football", "small cylinder": "football",
                    "cylinder": "football"},
    "hammer": {"red puck": "hammer", "puck": "hammer", "red cylinder": "hammer", "small cylinder": "hammer",
               "cylinder": "hammer"},
}  # fmt: skip
_SIDES = {"left": "right", "right": "left", "leftwards": "rightwards", "rightwards": "leftwards"}


@cache
def mirror_images() -> tuple[Symmetry, ...]:
    """The world as it is, and mirrored at the plane x = 0 through the middle of the table.

    The hand obeys the same laws in a mirror, and so does what it pushes, pulls and turns. A rollout of the mirror world
    has the other side's motions, such as a window that slides to the left. Its furniture may not exist here, which is
    why these are mirror images and no symmetries of the simulator.
    """
    order, same = np.arange(OBSERVATION_SIZE), np.ones(ACTION_SIZE, np.float32)
    action_sign, sign = same.copy(), np.ones(OBSERVATION_SIZE, np.float32)
    action_sign[0] = sign[HAND.start] = sign[TARGET.start] = -1
    for pose in map(pose_slice, ENTITIES):
        # x, and the parts of a quaternion (w, x, y, z) that turn about the axes within the mirror's plane
        sign[pose.start], sign[pose.start + 5 : pose.stop] = -1, -1
    return Symmetry(order, same, {}), Symmetry(order, action_sign, _SIDES, sign)


@cache
def stand_ins() -> tuple[Symmetry, ...]:
    """The mirror images, and each of them with a ball or a hammer in the place of the puck.

    How the puck is pushed and carried is recorded; that other things are pushed and carried alike is said here. What
    they are good for afterwards, such as driving a nail, is not.
    """
    plain = mirror_images()
    return *plain, *(_with_another_puck(image, thing) for thing in _LIKE_THE_PUCK for image in plain)


def _with_another_puck(image: Symmetry, thing: str) -> Symmetry:
    """The world with the puck and a thing exchanged, seen by a mirror image."""
    order = image.observation_order.copy()
    puck, other = pose_slice("target_object"), pose_slice(thing)
    order[puck], order[other] = image.observation_order[other], image.observation_order[puck]
    return replace(image, observation_order=order, word_of={**image.word_of, **_LIKE_THE_PUCK[thing]})
