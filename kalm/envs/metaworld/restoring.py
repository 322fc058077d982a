"""Brings a scene to a given observation, as nearly as 91 numbers allow.

What comes back: the hand, the opening of the gripper, the target location with what is placed by it, and the pose of
every entity that can move. What an observation does not hold, and so starts anew: velocities (all zero), forces of
contact (a held object is let go unless the next action grips it), the posture of the elbow, and a place that arm or
mount cannot take. Entities that the scene lacks are ignored; those that the observation lacks stay where they are.
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from kalm.envs.metaworld.layout import HAND, OPENING, TARGET, is_present, position, quaternion
from kalm.envs.metaworld.scene import Scene, SceneState
from kalm.envs.metaworld.tasks import Entity

Numbers = NDArray[np.float64]

ROUNDING = 1e-6  # numbers that come back so near are returned as they were asked for
_EXACT = 1e-10  # metres
_LONGEST_ROUND = 0.03  # metres that the arm is solved for at once
_MAX_ROUNDS = 100
# Of what an arm at its limits cannot do, uprightness is given up, the more the longer the search for a way takes.
_MOVE_DAMPING, _TURN_DAMPING, _GROWTH = 1e-8, 1e-3, 1.2


def restore(scene: Scene, observation: Numbers) -> tuple[SceneState, Numbers]:
    """A state that looks like the observation, and what is really seen of it, both observations of shape (91,)."""
    target = observation[TARGET].copy()
    scene.start_anew(target)
    if scene.task.anchor is not None:
        body, offset = scene.task.anchor
        scene.model.body_pos[scene.model.body(body).id] = target + np.array(offset)
    mujoco.mj_forward(scene.model, scene.data)
    _move_hand(scene, observation)
    for entity in scene.task.entities:  # the parents of a kinematic chain come first
        if is_present(observation, entity.name):
            _place(scene, entity, observation)
    state = scene.remember(target)
    seen = scene.read(target)
    return state, np.where(np.abs(seen - observation) < ROUNDING, observation, seen)


def _move_hand(scene: Scene, observation: Numbers) -> None:
    """Bring the hand to its place by the arm's joints, upright as it is, and the fingers to their opening."""
    model, data = scene.model, scene.data
    wanted = observation[HAND]
    now = scene.read(observation[TARGET])
    if np.abs(now[: OPENING + 1] - observation[: OPENING + 1]).max() < ROUNDING:
        return
    hand = model.body("hand").id
    joints = [model.joint(f"right_j{number}") for number in range(7)]
    places, freedoms = [joint.qposadr[0] for joint in joints], [joint.dofadr[0] for joint in joints]
    low, high = np.array([joint.range for joint in joints]).T
    low, high = np.minimum(low, data.qpos[places]), np.maximum(high, data.qpos[places])  # limits are soft
    upright, lead = data.xquat[hand].copy(), data.mocap_pos[0] - data.xpos[hand]  # the hand trails what pulls it
    turn, move_jacobian, turn_jacobian = np.empty(3), np.empty((3, model.nv)), np.empty((3, model.nv))
    for number in range(_MAX_ROUNDS):
        damping = np.repeat([_MOVE_DAMPING, _TURN_DAMPING * _GROWTH**number], 3)
        way = wanted - data.xpos[hand]
        length = float(np.linalg.norm(way))
        if length < _EXACT:
            break
        mujoco.mju_subQuat(turn, upright, data.xquat[hand])
        turn[:] = data.xmat[hand].reshape(3, 3) @ turn
        mujoco.mj_jacBody(model, data, move_jacobian, turn_jacobian, hand)
        jacobian = np.concatenate([move_jacobian, turn_jacobian])[:, freedoms]
        wish = np.concatenate([way * min(1.0, _LONGEST_ROUND / length), turn])
        data.qpos[places] = _turned(data.qpos[places], jacobian, wish, damping, low, high)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
    data.mocap_pos[0] = data.xpos[hand] + lead
    data.qvel[:] = 0.0
    _open_fingers(scene, float(observation[OPENING]))


def _turned(
    angles: Numbers, jacobian: Numbers, wish: Numbers, damping: Numbers, low: Numbers, high: Numbers
) -> Numbers:
    """Joint angles, shape (7,), that change the hand's pose nearly as wished, shape (6,), within the joints' limits."""
    free = np.ones(len(angles), dtype=np.bool_)
    turned = angles
    for _ in angles:
        part = jacobian * free
        turned = angles + part.T @ np.linalg.solve(part @ part.T + np.diag(damping), wish)
        beyond = free & ((turned < low) | (turned > high))
        if not beyond.any():
            break
        free &= ~beyond  # what stands at its limit leaves the others to do it
    return np.clip(turned, low, high)


def _open_fingers(scene: Scene, opening: float) -> None:
    """Slide both fingers by the same way until they are as far apart as wanted."""
    model, data = scene.model, scene.data
    right, left = (model.joint(name) for name in ("r_close", "l_close"))
    for _ in range(3):  # the distance is nearly linear in the slides
        mujoco.mj_kinematics(model, data)
        apart = float(np.linalg.norm(data.body("rightclaw").xpos - data.body("leftclaw").xpos)) / 0.1
        close_by = 0.1 * (apart - opening) / 2.0
        data.qpos[right.qposadr[0]] += close_by
        data.qpos[left.qposadr[0]] -= close_by


def _place(scene: Scene, entity: Entity, observation: Numbers) -> None:
    """Set the joint of an entity so that it has the observed pose."""
    model, data = scene.model, scene.data
    body = model.body(entity.body).id
    if model.body_jntnum[body] == 0:
        return
    joint = model.body_jntadr[body]
    address, kind = model.jnt_qposadr[joint], model.jnt_type[joint]
    place, orientation = position(observation, entity.name), quaternion(observation, entity.name)
    if kind == mujoco.mjtJoint.mjJNT_FREE:
        data.qpos[address : address + 3] = place - np.array(entity.offset)
        data.qpos[address + 3 : address + 7] = orientation / np.linalg.norm(orientation)
        data.qvel[model.jnt_dofadr[joint] : model.jnt_dofadr[joint] + 6] = 0.0
        return
    data.qpos[address] = 0.0
    data.qvel[model.jnt_dofadr[joint]] = 0.0
    mujoco.mj_kinematics(model, data)
    if kind == mujoco.mjtJoint.mjJNT_SLIDE:
        unmoved = position(scene.read(observation[TARGET]), entity.name)
        data.qpos[address] = float((place - unmoved) @ data.xaxis[joint])
    else:
        turned, back = np.empty(4), np.empty(4)
        mujoco.mju_negQuat(back, data.xquat[body])
        mujoco.mju_mulQuat(turned, back, orientation / np.linalg.norm(orientation))
        data.qpos[address] = 2.0 * np.arctan2(float(turned[1:] @ model.jnt_axis[joint]), float(turned[0]))
        if abs(data.qpos[address]) > np.pi:
            data.qpos[address] -= 2.0 * np.pi * np.sign(data.qpos[address])
    mujoco.mj_kinematics(model, data)
