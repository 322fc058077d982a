"""How far along each task is, 0 to 10, from the 91 numbers alone: what rewards are differences of.

Each potential follows the package's reward, version v2, as closely as the 91 numbers allow. That reward also reads what
they do not hold, for which there are stand-ins:

- the place of the finger pads: from hand and opening, as ``layout.finger_tips``;
- where the object and the hand began: the middle of where layouts put them;
- the effort that the action puts into the gripper: how far the gripper is closed.

The composed tasks count their two stages half each. The functions from ``long_tail`` to ``soft_and`` are batched forms
of what the package takes from dm_control: ``tolerance`` says how nearly a number lies within bounds, the Hamacher
product is a soft "and". Shape: ... any batch shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from kalm.core.goal import BoolArray, FloatArray
from kalm.envs.metaworld.layout import HAND, OPENING, TARGET, finger_tips, lock_angle, position, quaternion
from kalm.envs.metaworld.success import (
    FAUCET_OPEN_TIP,
    NAIL_DEPTH,
    SUCCESS,
    coffee_button_distance,
    distance,
    distance_along,
    is_unlocked,
    tip_distance,
)

Potential = Callable[[FloatArray], FloatArray]

_TIPS_BELOW_HAND = np.array([0.0, 0.0, -0.045])
_OVER = np.array([0.0, 0.6, 0.2])  # where the hand begins
_NEAR = np.array([0.0, 0.4, 0.2])
_ASIDE = np.array([-0.5, 0.6, 0.2])
_PUCK_START = np.array([0.0, 0.65, 0.02])
_WALLED_PUCK_START = np.array([0.0, 0.625, 0.015])
_MUG_START = np.array([0.0, 0.6, 0.0])
_XZ = (0, 2)
VALUE_AT_MARGIN = 0.1


def long_tail(x: ArrayLike, upper: float, margin: ArrayLike, lower: float = 0.0) -> FloatArray:
    """1 from ``lower`` to ``upper``; outside, 1 / (9 d^2 + 1) at d margins from the nearer bound, shape (...).

    At one margin the value has fallen to ``VALUE_AT_MARGIN``; the margin broadcasts with ``x``.
    """
    return 1.0 / (_margins_outside(x, lower, upper, margin) ** 2 * (1.0 / VALUE_AT_MARGIN - 1.0) + 1.0)


def gaussian(x: ArrayLike, upper: float, margin: ArrayLike) -> FloatArray:
    """Like ``long_tail``, but falling as a Gaussian does."""
    return np.exp(np.log(VALUE_AT_MARGIN) * _margins_outside(x, 0.0, upper, margin) ** 2)


def _margins_outside(x: ArrayLike, lower: float, upper: float, margin: ArrayLike) -> FloatArray:
    x = np.asarray(x, dtype=np.float64)
    outside = np.maximum(np.maximum(lower - x, x - upper), 0.0)
    return outside / np.maximum(np.asarray(margin, dtype=np.float64), 1e-6)


def soft_and(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """Hamacher product a b / (a + b - a b) of numbers in [0, 1], 0 where both are 0, shape (...)."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    below = a + b - a * b
    return np.where(below > 0, a * b / np.where(below > 0, below, 1.0), 0.0)


def _length(vector: FloatArray) -> FloatArray:
    return np.linalg.norm(vector, axis=-1)


def _target(observation: FloatArray) -> FloatArray:
    return observation[..., TARGET]


def _caging(observation: FloatArray, thing: FloatArray, radius: float, side: float, middle: float) -> FloatArray:
    """How well the fingers surround a thing, before they grip: both pads beside it, the tips level with it.

    A pad is beside a thing of this ``radius`` if it is ``side`` away from its middle, and the tips are level with it
    within ``middle`` in x and z.
    """
    hand_y, opening = observation[..., 1], observation[..., OPENING]
    sides = []
    for pad_y in (hand_y + 0.0431 * opening + 0.0034, hand_y - 0.0568 * opening + 0.0094):
        away = np.abs(pad_y - thing[..., 1])
        sides.append(long_tail(away, side, np.abs(away - side), lower=radius))
    level = _length((finger_tips(observation) - thing)[..., _XZ])
    return soft_and(soft_and(*sides), long_tail(level, middle, 0.14 - middle))


def _closed(observation: FloatArray) -> FloatArray:
    """How far the gripper is closed, where half way is as far as objects let it."""
    return np.clip(2.0 * (1.0 - observation[..., OPENING]), 0.0, 1.0)


def _gripping(observation: FloatArray, caging: FloatArray) -> FloatArray:
    return soft_and(caging, np.where(caging > 0.97, _closed(observation), 0.0))


def _puck(observation: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, BoolArray]:
    """Place of the puck, how well it is caged and gripped, and whether it is between the finger tips."""
    puck = position(observation, "target_object")
    caging = _caging(observation, puck, 0.015, 0.05, 0.005)
    return puck, caging, _gripping(observation, caging), _length(puck - finger_tips(observation)) < 0.02


def _reach(start: FloatArray) -> Potential:
    return lambda o: 10.0 * long_tail(tip_distance(o), 0.05, _length(start - _target(o)))


def _in_place(observation: FloatArray, entity: str, start: FloatArray) -> FloatArray:
    return long_tail(distance(observation, entity), 0.05, _length(start - _target(observation)))


def _push(observation: FloatArray) -> FloatArray:
    _, caging, gripping, is_held = _puck(observation)
    grasp = gripping + caging
    held = 1.0 + 2.0 * grasp + 5.0 * _in_place(observation, "target_object", _PUCK_START)
    value = np.where(is_held, held, grasp)
    return np.where(distance(observation, "target_object") < 0.05, 10.0, value)


def _push_wall(observation: FloatArray) -> FloatArray:
    puck, caging, gripping, is_held = _puck(observation)
    grasp = gripping + caging
    scale = np.array([3.0, 1.0, 0.0])
    corner = np.array([-0.05, 0.77, 0.0])  # the way leads around the end of the wall
    to_corner = _length((puck - corner) * scale)
    first = long_tail(to_corner, 0.05, _length((_WALLED_PUCK_START - corner) * scale))
    second = _in_place(observation, "target_object", _WALLED_PUCK_START)
    held = grasp + 1.0 + np.where(puck[..., 1] > 0.75, 4.0 + 3.0 * second, 4.0 * first)
    value = np.where(is_held, held, grasp)
    return np.where(distance(observation, "target_object") < 0.05, 10.0, value)


def _pick_place(observation: FloatArray) -> FloatArray:
    puck, caging, gripping, is_held = _puck(observation)
    placed = _in_place(observation, "target_object", _PUCK_START)
    is_lifted = is_held & (puck[..., 2] > 0.03)
    value = soft_and((gripping + caging) / 2.0, placed) + np.where(is_lifted, 1.0 + 5.0 * placed, 0.0)
    return np.where(distance(observation, "target_object") < 0.05, 10.0, value)


def _pick_place_wall(observation: FloatArray) -> FloatArray:
    puck, _, gripping, is_held = _puck(observation)
    target = _target(observation)
    scale = np.array([1.0, 1.0, 3.0])
    over_wall = np.stack([target[..., 0], np.full(target.shape[:-1], 0.77), np.full(target.shape[:-1], 0.25)], axis=-1)
    to_top = _length((puck - over_wall) * scale)
    first = long_tail(to_top, 0.05, _length((_WALLED_PUCK_START - over_wall) * scale))
    second = _in_place(observation, "target_object", _WALLED_PUCK_START)
    lifted = 1.0 + np.where(puck[..., 1] > 0.75, 4.0 + 3.0 * second, 4.0 * first)
    is_lifted = is_held & (puck[..., 2] > 0.03)
    value = soft_and(gripping, first) + np.where(is_lifted, lifted, 0.0)
    return np.where(distance(observation, "target_object") < 0.05, 10.0, value)


def _press(observation: FloatArray, entity: str, to_go: FloatArray, depth: float) -> FloatArray:
    button = position(observation, entity)
    to_button = _length(button - finger_tips(observation))
    near = long_tail(to_button, 0.05, _length(button - _NEAR - _TIPS_BELOW_HAND))
    pressed = long_tail(to_go, 0.005, depth)
    return 2.0 * soft_and(observation[..., OPENING], near) + np.where(to_button <= 0.05, 8.0 * pressed, 0.0)


def _button_press_wall(observation: FloatArray) -> FloatArray:
    button, opening = position(observation, "button"), observation[..., OPENING]
    to_button = _length(button - finger_tips(observation))
    near = long_tail(to_button, 0.01, _length(button - _NEAR - _TIPS_BELOW_HAND))
    pressed = long_tail(distance_along(observation, "button", 1), 0.005, 0.0935)
    at_button = 2.0 + 2.0 * (1.0 + opening) + 4.0 * pressed**2
    return np.where(to_button > 0.07, 2.0 * soft_and((1.0 - opening) / 2.0, near), at_button)


def _turn_lever(observation: FloatArray, to_go: FloatArray) -> FloatArray:
    scale = np.array([0.25, 1.0, 0.5])
    shoulder = np.array([0.0, 0.055, 0.07])  # of the hand, which pushes the lever
    lock = position(observation, "lock")
    margin = _length((_OVER + _TIPS_BELOW_HAND + shoulder - lock) * scale)
    ready = long_tail(_length((observation[..., HAND] + shoulder - lock) * scale), 0.02, margin)
    return 2.0 * ready + 8.0 * long_tail(to_go, 0.005, 0.1)


def _door_lock(observation: FloatArray) -> FloatArray:
    scale = np.array([0.25, 1.0, 0.5])
    lock, opening = position(observation, "lock"), observation[..., OPENING]
    pad = observation[..., HAND] + np.stack([0.0 * opening, 0.0431 * opening + 0.0034, 0.0 * opening], axis=-1)
    margin = _length((lock - _OVER - np.array([0.0, 0.046, 0.0])) * scale)
    near = long_tail(_length((lock - pad) * scale), 0.01, margin)
    return 2.0 * soft_and(opening, near) + 8.0 * long_tail(distance_along(observation, "lock", 2), 0.005, 0.1)


def door_angle(observation: FloatArray) -> FloatArray:
    """How far a door is open, in radians, shape (...), from the orientation of its handle."""
    w, _, _, z = np.moveaxis(quaternion(observation, "handle"), -1, 0)
    return -2.0 * np.arctan(z / np.where(np.abs(w) < 1e-9, 1e-9, w))


def _door_open(observation: FloatArray) -> FloatArray:
    hand, handle = observation[..., HAND], position(observation, "handle")
    grip = handle + np.array([-0.05, 0.0, 0.0])
    around = _length((hand - grip)[..., :2])
    # Far from the handle the hand must keep above a floor, so that it comes down on the handle from above.
    floor = np.where(around <= 0.12, 0.0, 0.04 * np.log(np.maximum(around - 0.12, 1e-9)) + 0.4)
    above = np.where(hand[..., 2] >= floor, 1.0, long_tail(floor - hand[..., 2], 0.01, np.abs(floor) / 2.0))
    at_handle = long_tail(_length(hand - grip - np.array([0.05, 0.03, -0.01])), 0.06, 0.5)
    angle = door_angle(observation)
    opened = 0.2 * (angle > np.pi / 90.0) + 0.8 * long_tail(2.0 * np.pi / 3.0 - angle, 0.5, np.pi / 3.0)
    # The expert squeezes all along, and the package pays for it; a closed gripper is what can be seen of that.
    squeezed = np.clip((1.0 - observation[..., OPENING]) / 0.7, 0.5, 1.0)
    value = 2.0 * soft_and(soft_and(above, at_handle), squeezed) + 8.0 * opened
    return np.where(distance_along(observation, "handle", 0) <= 0.08, 10.0, value)


def _door_close(observation: FloatArray) -> FloatArray:
    handle, target = position(observation, "handle"), _target(observation)
    to_go = distance(observation, "handle")
    in_place = gaussian(to_go, 0.05, 0.283)  # the package measures from the hinge, two tenths off either way
    margin = _length(_ASIDE - handle) + 0.1
    hand_in_place = gaussian(_length(finger_tips(observation) - target), 0.0125, margin)
    return np.where(to_go < 0.05, 10.0, 3.0 * hand_in_place + 6.0 * in_place)


def _window(shift: float, width: float, reaching: Callable[[FloatArray, float, FloatArray], FloatArray]) -> Potential:
    def value(observation: FloatArray) -> FloatArray:
        start = _target(observation) + np.array([shift, -0.095, 0.0])  # of the handle
        in_place = long_tail(distance_along(observation, "window", 0), 0.05, width)
        margin = np.abs(_length(start - _NEAR - _TIPS_BELOW_HAND) - 0.02)
        reach = reaching(_length(position(observation, "window") - finger_tips(observation)), 0.02, margin)
        return 10.0 * soft_and(reach, in_place)

    return value


def _faucet(tip_offset: FloatArray, side: float) -> Potential:
    from_base = np.array([side * 0.175, 0.0, 0.125])

    def value(observation: FloatArray) -> FloatArray:
        tip, target = position(observation, "faucet") + tip_offset, _target(observation)
        to_go = _length(tip - target)
        in_place = long_tail(to_go, 0.07, np.linalg.norm(from_base) - 0.07)
        margin = _length(target - from_base - _NEAR - _TIPS_BELOW_HAND) - 0.01
        reach = gaussian(_length(tip - finger_tips(observation)), 0.01, margin)
        return np.where(to_go <= 0.07, 10.0, 4.0 * reach + 6.0 * in_place)

    return value


def _coffee_push(observation: FloatArray) -> FloatArray:
    mug, target = position(observation, "coffee_mug"), _target(observation)
    scale = np.array([2.0, 2.0, 1.0])
    to_go = _length((mug - target) * scale)
    in_place = long_tail(to_go, 0.05, _length((_MUG_START - target) * scale))
    to_mug = _length(mug - finger_tips(observation))
    caging = _caging(observation, mug, 0.02, 0.05, 0.05)
    reach = long_tail(to_mug, 0.04, _length(_MUG_START - _NEAR - _TIPS_BELOW_HAND) - 0.04)
    grasp = (_gripping(observation, caging) + reach) / 2.0
    value = soft_and(grasp, in_place) + np.where(to_mug < 0.04, 1.0 + 5.0 * in_place, 0.0)
    return np.where(to_go < 0.05, 10.0, value)


def _hammer(observation: FloatArray) -> FloatArray:
    hammer = position(observation, "hammer")
    head = hammer + np.array([0.16, 0.06, 0.0])
    held_at = hammer.copy()
    along_handle = np.abs(hammer[..., 0] - observation[..., 0]) < 0.07
    held_at[..., 0] = np.where(along_handle, observation[..., 0], hammer[..., 0])
    tilt = _length(quaternion(observation, "hammer") - np.array([1.0, 0.0, 0.0, 0.0]))
    upright = np.maximum(1.0 - tilt / 0.4, 0.0)
    caging = _caging(observation, held_at, 0.015, 0.02, 0.01)
    grasp = (_gripping(observation, caging) + caging) / 2.0
    at_nail = long_tail(_length(_target(observation) - head), 0.02, 0.2)
    value = (2.0 * grasp + 6.0 * (0.1 * (head[..., 2] > 0.02) + 0.9 * at_nail)) * upright
    depth = position(observation, "nail")[..., 1] - _target(observation)[..., 1] + 0.1
    return np.where((depth > NAIL_DEPTH) & (value > 5.0), 10.0, value)


def _soccer(observation: FloatArray) -> FloatArray:
    ball, target = position(observation, "soccer_ball"), _target(observation)
    scale = np.array([3.0, 1.0, 1.0])
    to_go = _length((ball - target) * scale)
    # The package's margin grows with the ball's way from its start, so that a ball at rest is worth nothing.
    in_place = long_tail(to_go, 0.07, _length((ball - np.array([0.0, 0.65, 0.03])) * scale))
    goal_line = target[..., 1] - 0.1
    is_wide = (ball[..., 1] > goal_line) & (np.abs(ball[..., 0] - target[..., 0]) > 0.1)
    missed = np.clip(in_place - 2.0 * (ball[..., 1] - goal_line) / (1.0 - goal_line), 0.0, 1.0)
    caging = _caging(observation, ball, 0.013, 0.05, 0.005)
    grasp = (caging + np.where(caging > 0.95, _closed(observation), 0.0)) / 2.0
    return np.where(to_go < 0.07, 10.0, 3.0 * grasp + 6.5 * np.where(is_wide, missed, in_place))


def _make_coffee(observation: FloatArray) -> FloatArray:
    press = _press(observation, "coffee_button", coffee_button_distance(observation), 0.03)
    return np.where(SUCCESS["coffee-push"](observation), 5.0 + press / 2.0, _coffee_push(observation) / 2.0)


def _locked_door_open(observation: FloatArray) -> FloatArray:
    turn = _turn_lever(observation, 0.1 * np.clip(lock_angle(observation) / (np.pi / 2.0), 0.0, 1.0))
    return np.where(is_unlocked(observation), 5.0 + _door_open(observation) / 2.0, turn / 2.0)


POTENTIALS: dict[str, Potential] = {
    "reach": _reach(_OVER),
    "push": _push,
    "pick-place": _pick_place,
    "button-press": lambda o: _press(o, "button", distance_along(o, "button", 1), 0.0935),
    "door-unlock": lambda o: _turn_lever(o, distance_along(o, "lock", 0)),
    "door-open": _door_open,
    "window-open": _window(-0.24, 0.15, long_tail),
    "faucet-open": _faucet(FAUCET_OPEN_TIP, 1.0),
    "coffee-push": _coffee_push,
    "coffee-button": lambda o: _press(o, "coffee_button", distance_along(o, "coffee_button", 1), 0.03),
    "reach-wall": _reach(_OVER),
    "push-wall": _push_wall,
    "pick-place-wall": _pick_place_wall,
    "button-press-wall": _button_press_wall,
    "door-lock": _door_lock,
    "door-close": _door_close,
    "window-close": _window(0.21, 0.16, gaussian),
    "faucet-close": _faucet(np.zeros(3), -1.0),
    "make-coffee": _make_coffee,
    "locked-door-open": _locked_door_open,
    "hammer": _hammer,
    "soccer": _soccer,
}
