"""When each task is done, from the 91 numbers alone: the rules of Meta-World's v3 scenes.

Shape: ... any batch shape. Distances in metres, between an entity and the target location unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kalm.core.goal import BoolArray, FloatArray
from kalm.envs.metaworld.layout import TARGET, finger_tips, lock_angle, position

Rule = Callable[[FloatArray], BoolArray]

# At this angle the lever of a door-unlock scene is within 0.02 m of its end, which is when that task is done.
UNLOCKED_ANGLE = 0.37
COFFEE_BUTTON_DEPTH = 0.03  # from the face of the coffee machine's button to where it stops
FAUCET_OPEN_TIP = np.array([-0.04, 0.0, 0.03])  # the package measures from a point beside the observed one
IDLE_TIPS = np.array([0.0, 0.0043, 0.0])  # the fingers of an idle gripper sag to one side
NAIL_DEPTH = 0.09  # of 0.1; the target location is where the nail's head would end


def distance(observation: FloatArray, entity: str) -> FloatArray:
    """From an entity to the target location, shape (...)."""
    return np.linalg.norm(position(observation, entity) - observation[..., TARGET], axis=-1)


def distance_along(observation: FloatArray, entity: str, axis: int) -> FloatArray:
    """The same along one axis only, shape (...)."""
    return np.abs(position(observation, entity)[..., axis] - observation[..., TARGET][..., axis])


def tip_distance(observation: FloatArray) -> FloatArray:
    """From the finger tips of an idle gripper, as reaching leaves it, to the target location, shape (...)."""
    return np.linalg.norm(finger_tips(observation) + IDLE_TIPS - observation[..., TARGET], axis=-1)


def coffee_button_distance(observation: FloatArray) -> FloatArray:
    """How far the button is from being pressed, when the target location is the mug's, shape (...)."""
    pressed_at = observation[..., TARGET][..., 1] + COFFEE_BUTTON_DEPTH
    return np.abs(position(observation, "coffee_button")[..., 1] - pressed_at)


def is_unlocked(observation: FloatArray) -> BoolArray:
    """Whether the lever on the door is turned to its open end, shape (...)."""
    return lock_angle(observation) <= UNLOCKED_ANGLE


def _near(entity: str, limit: float) -> Rule:
    return lambda observation: distance(observation, entity) <= limit


def _level(entity: str, axis: int, limit: float) -> Rule:
    return lambda observation: distance_along(observation, entity, axis) <= limit


def _faucet_opened(observation: FloatArray) -> BoolArray:
    tip = position(observation, "faucet") + FAUCET_OPEN_TIP
    return np.linalg.norm(tip - observation[..., TARGET], axis=-1) <= 0.07


def _nailed(observation: FloatArray) -> BoolArray:
    return position(observation, "nail")[..., 1] > observation[..., TARGET][..., 1] - 0.1 + NAIL_DEPTH


def _coffee_made(observation: FloatArray) -> BoolArray:
    """The mug waits at the machine while the button is down; the button springs back, so the order is enforced."""
    return (distance(observation, "coffee_mug") <= 0.07) & (coffee_button_distance(observation) <= 0.02)


def _locked_door_opened(observation: FloatArray) -> BoolArray:
    """A locked door does not open, so the order is enforced; an imagined one must look unlocked too."""
    return is_unlocked(observation) & (distance_along(observation, "handle", 0) <= 0.08)


SUCCESS: dict[str, Rule] = {
    "reach": lambda o: tip_distance(o) <= 0.05,
    "push": _near("target_object", 0.05),
    "pick-place": _near("target_object", 0.07),
    "button-press": _level("button", 1, 0.02),
    "door-unlock": _level("lock", 0, 0.02),
    "door-open": _level("handle", 0, 0.08),
    "window-open": _level("window", 0, 0.05),
    "faucet-open": _faucet_opened,
    "coffee-push": _near("coffee_mug", 0.07),
    "coffee-button": _level("coffee_button", 1, 0.02),
    "reach-wall": lambda o: tip_distance(o) <= 0.05,
    "push-wall": _near("target_object", 0.07),
    "pick-place-wall": _near("target_object", 0.07),
    "button-press-wall": _level("button", 1, 0.03),
    "door-lock": _level("lock", 2, 0.02),
    "door-close": _near("handle", 0.08),
    "window-close": _level("window", 0, 0.05),
    "faucet-close": _near("faucet", 0.07),
    "make-coffee": _coffee_made,
    "locked-door-open": _locked_door_opened,
    "hammer": _nailed,
    "soccer": _near("soccer_ball", 0.07),
}
