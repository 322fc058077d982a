"""The experts: the package's scripted policies, fed from the 91 numbers, and their joining for the composed tasks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Array
from kalm.envs.metaworld.layout import ACTION_SIZE, HAND, OPENING, TARGET, lock_angle, pose_slice, position, quaternion
from kalm.envs.metaworld.package import import_metaworld
from kalm.envs.metaworld.success import distance
from kalm.envs.metaworld.tasks import TASKS
from kalm.envs.simulation import Act

Observation = NDArray[np.floating[Any]]
Expert = Callable[[Observation], NDArray[np.float32]]

_PACKAGE_SIZE = 39  # of the package's own observation: 18 numbers, the 18 before them, the target location
_PACKAGE_ENTITIES = (4, 11)  # where the poses of one or two things lie in it
_GAIN = 10.0  # action for each metre still to go, as in the package's policies
# Ways between the two stages of the composed tasks, in metres.
_CLEAR_OF_MUG = 0.15  # the hand is this far above the mug's base when its fingers have left the mug
_UNDER_BUTTON = np.array([0.0, 0.0, -0.07])  # where the hand is when its knuckles face the coffee button
_STAND_OFF = 0.07  # the hand's way to the button that leaves it room to rise
_TURNED_WELL = 0.2  # angle of the lever that survives a brush of the hand
_BEHIND_HANDLE = np.array([0.01, 0.02])  # where the hand goes down, seen from the handle


def noisy_experts(tasks: Sequence[str], luck: Sequence[np.random.Generator], action_noise: float) -> Act:
    """Acts in many episodes at once, each with its task, its source of chance and normal noise on its actions."""
    experts = [expert(task) for task in tasks]

    def act(observation: Array, episodes: list[int], info: dict[str, Any]) -> NDArray[np.float32]:
        with warnings.catch_warnings():
            # The package's policies ask for more than an action may hold, and say so at every step.
            warnings.filterwarnings("ignore", message="Constant.s. may be too high")
            actions = np.stack([experts[episode](seen) for episode, seen in zip(episodes, observation, strict=True)])
        for place, episode in enumerate(episodes if action_noise > 0 else ()):
            noise = action_noise * luck[episode].standard_normal(ACTION_SIZE)
            actions[place] = np.clip(actions[place] + noise, -1.0, 1.0)
        return actions

    return act


@cache
def expert(task: str) -> Expert:
    """What a task's expert does in an observation of shape (91,): an action of shape (4,), in [-1, 1]."""
    if task == "make-coffee":
        return _make_coffee(expert("coffee-push"), expert("coffee-button"))
    if task == "locked-door-open":
        return _open_locked_door(expert("door-unlock"), expert("door-open"))
    if task == "coffee-button":
        return _scripted(task, "coffee_button")
    if task == "hammer":
        return _scripted(task, "hammer", "nail")
    return _scripted(task, TASKS[task].entities[0].name)


def _scripted(task: str, *entities: str) -> Expert:
    """A task's policy of the package, such as ``SawyerDoorOpenV3Policy``, that sees the given entities."""
    name = f"Sawyer{task.title().replace('-', '')}V3Policy"
    policy = getattr(import_metaworld("metaworld.policies"), name)()
    parts = [pose_slice(entity) for entity in entities]

    def act(observation: Observation) -> NDArray[np.float32]:
        seen = np.zeros(_PACKAGE_SIZE)
        seen[: OPENING + 1] = observation[: OPENING + 1]
        for start, part in zip(_PACKAGE_ENTITIES, parts, strict=False):
            seen[start : start + 7] = observation[part]
        seen[-3:] = observation[TARGET]
        return np.clip(policy.get_action(seen), -1.0, 1.0).astype(np.float32)

    return act


def _make_coffee(push: Expert, press: Expert) -> Expert:
    """Push the mug to its place; let go of it, rise out of it and back off; press the button."""

    def act(observation: Observation) -> NDArray[np.float32]:
        hand, mug = observation[HAND], position(observation, "coffee_mug")
        if distance(observation, "coffee_mug") > 0.06:
            return push(observation)
        if hand[2] - mug[2] < _CLEAR_OF_MUG and np.linalg.norm(hand[:2] - mug[:2]) < 0.12:
            # Opening comes first: a gripper that leaves with the mug's rim between its fingers takes it along.
            way = (0.0, 0.0, 0.0) if observation[OPENING] < 0.85 else (0.0, -0.4, 1.0)
            return np.array([*way, -1.0], dtype=np.float32)
        to_button = position(observation, "coffee_button") + _UNDER_BUTTON - hand
        if to_button[1] < _STAND_OFF and np.abs(to_button[[0, 2]]).max() > 0.02:
            way = np.clip(_GAIN * to_button, -1.0, 1.0)
            return np.array([way[0], -1.0, way[2], -1.0], dtype=np.float32)
        return press(observation)

    return act


def _open_locked_door(unlock: Expert, pull: Expert) -> Expert:
    """Turn the lever; rise past it and come down behind the handle; pull the door open."""

    def act(observation: Observation) -> NDArray[np.float32]:
        w, _, _, z = quaternion(observation, "handle")
        is_shut = abs(2 * np.arctan2(z, w)) < 0.15
        if is_shut and lock_angle(observation) > _TURNED_WELL:
            return unlock(observation)
        from_handle = observation[HAND] - position(observation, "handle")
        if is_shut and from_handle[0] < -0.055 and from_handle[2] < 0.12:
            way = np.clip(_GAIN * (_BEHIND_HANDLE - from_handle[:2]), -1.0, 1.0)
            return np.array([*way, 1.0, 1.0], dtype=np.float32)
        return pull(observation)

    return act
