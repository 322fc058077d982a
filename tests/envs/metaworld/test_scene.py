"""A scene simulates as the package does, and its states are worlds of their own."""

from __future__ import annotations

import numpy as np
import pytest

from kalm.envs.metaworld.scene import Scene
from kalm.envs.metaworld.tasks import TASKS
from tests.envs.metaworld.package_rollouts import PACKAGE_TASKS


@pytest.mark.parametrize("task", PACKAGE_TASKS[::3])
def test_steps_are_the_packages_to_the_last_bit(task: str) -> None:
    """Random actions lead through equal observations when the package's own ``step`` is called instead."""
    ours, theirs = Scene(TASKS[task]), Scene(TASKS[task])
    state, same = ours.lay_out(np.random.default_rng(5)), theirs.lay_out(np.random.default_rng(5))
    np.testing.assert_array_equal(state.physics, same.physics)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32):
        state = ours.step(state, action)
        theirs.env.step(action)
        np.testing.assert_array_equal(ours.observe(state), theirs.read(same.target))


def test_states_of_one_scene_do_not_touch_each_other() -> None:
    """Two layouts stepped in turns go where each goes alone."""
    scene = Scene(TASKS["door-open"])
    starts = [scene.lay_out(np.random.default_rng(seed)) for seed in (1, 2)]
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 4)).astype(np.float32)
    alone = []
    for state in starts:
        for action in actions:
            state = scene.step(state, action)
        alone.append(scene.observe(state))
    states = list(starts)
    for action in actions:
        states = [scene.step(state, action) for state in states]
    for state, expected in zip(states, alone, strict=True):
        np.testing.assert_array_equal(scene.observe(state), expected)
    assert not np.array_equal(*alone)


def test_coffee_button_springs_back() -> None:
    """So that a button pressed before the mug is there is pressed in vain."""
    scene = Scene(TASKS["make-coffee"])
    scene.lay_out(np.random.default_rng(0))
    scene.data.joint("goal_slidey").qpos[0] = 0.03
    state = scene.remember(scene.env._target_pos)
    for _ in range(40):
        state = scene.step(state, np.zeros(4))
    assert scene.data.joint("goal_slidey").qpos[0] < 0.005


def test_bolt_holds_the_door_until_the_lever_is_turned() -> None:
    """The same pull opens the unlocked door and not the locked one."""
    opened = {}
    for lever in (np.pi / 2, 0.0):
        scene = Scene(TASKS["locked-door-open"])
        scene.lay_out(np.random.default_rng(0))
        scene.data.joint("lock_joint").qpos[0] = lever
        scene.data.qfrc_applied[scene.model.joint("doorjoint").dofadr[0]] = -2.0
        state = scene.remember(scene.env._target_pos)
        for _ in range(40):
            state = scene.step(state, np.zeros(4))
        opened[lever] = -float(scene.data.joint("doorjoint").qpos[0])
    assert opened[np.pi / 2] < 0.02
    assert opened[0.0] > 0.2
