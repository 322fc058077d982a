"""The pure rules agree with the package's verdicts and rewards, step by step, on real rollouts of all 22 tasks."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from kalm.envs.metaworld.domain import MetaWorld
from kalm.envs.metaworld.expert import expert
from kalm.envs.metaworld.goals import TaskGoal
from kalm.envs.metaworld.potential import POTENTIALS, door_angle
from kalm.envs.metaworld.scene import Scene
from kalm.envs.metaworld.success import SUCCESS
from kalm.envs.metaworld.tasks import TASKS
from tests.envs.metaworld.package_rollouts import COMPOSED_TASKS, PACKAGE_TASKS, package_rollouts

NUM_ROLLOUTS = 3
NUM_STEPS = 100
ACTION_NOISE = 0.1
# The verdict on reaching hangs on the finger tips, which the 91 numbers give to 2 mm: it may come a step off.
LEAST_AGREEMENT = {"reach": 0.97, "reach-wall": 0.97}
# What the 91 numbers do not hold costs most where the package pays for a grip or for the way from the start.
LEAST_CORRELATION = {"push": 0.9, "window-open": 0.85, "hammer": 0.9, "soccer": 0.75}


@pytest.mark.parametrize("task", PACKAGE_TASKS)
def test_rules_agree_with_the_package(task: str) -> None:
    """Verdicts are equal on all steps, but for a step around reaching; potentials go along with the v2 rewards."""
    rollouts = package_rollouts(task, range(NUM_ROLLOUTS), NUM_STEPS, ACTION_NOISE)
    observations = np.concatenate([rollout.observations[1:] for rollout in rollouts])
    successes = np.concatenate([rollout.successes for rollout in rollouts])
    rewards = np.concatenate([rollout.rewards for rollout in rollouts])
    agreement = (SUCCESS[task](observations) == successes).mean()
    correlation = np.corrcoef(POTENTIALS[task](observations), rewards)[0, 1]
    figure = f"{task}: verdicts equal on {agreement:.2%} of {len(successes)} steps, rewards correlate {correlation:.3f}"
    assert successes.any(), figure
    assert agreement >= LEAST_AGREEMENT.get(task, 1.0), figure
    assert correlation >= LEAST_CORRELATION.get(task, 0.97), figure


def test_all_tasks_are_covered() -> None:
    """Twenty tasks of the package and two composed ones, each with both rules."""
    assert (len(PACKAGE_TASKS), len(COMPOSED_TASKS)) == (20, 2)
    assert set(SUCCESS) == set(POTENTIALS) == set(TASKS)


@pytest.mark.parametrize("task", COMPOSED_TASKS)
def test_composed_rules_agree_with_the_simulator(task: str) -> None:
    """The verdict is that of the two parts' own conditions, read off joints and bodies rather than the 91 numbers."""
    scene, act = Scene(TASKS[task]), expert(task)
    state = scene.lay_out(np.random.default_rng(1))
    observation = scene.observe(state)
    verdicts, truths = [], []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Constant.s. may be too high")
        for _ in range(170):
            state = scene.step(state, act(observation))
            observation = scene.observe(state)
            verdicts.append(bool(SUCCESS[task](observation)))
            truths.append(_is_done(scene, state.target))
    assert verdicts == truths
    assert any(truths)


def _is_done(scene: Scene, target: np.ndarray) -> bool:
    data = scene.data
    if scene.task.name == "make-coffee":
        mug_is_there = np.linalg.norm(data.body("obj").xpos - target) <= 0.07
        return bool(mug_is_there and abs(0.03 - data.joint("goal_slidey").qpos[0]) <= 0.02)
    is_unlocked = abs(data.joint("lock_joint").qpos[0]) <= 0.37
    return bool(is_unlocked and abs(data.geom("handle").xpos[0] - target[0]) <= 0.08)


def test_door_angle_is_the_hinge() -> None:
    """Read from the handle's quaternion, it equals the joint of the simulator."""
    scene = Scene(TASKS["door-close"])
    observation = scene.observe(scene.lay_out(np.random.default_rng(0)))
    np.testing.assert_allclose(door_angle(observation), -scene.data.joint("doorjoint").qpos[0], atol=1e-6)


def test_reward_is_the_change_of_the_potential_and_ten_on_success() -> None:
    """Over a successful rollout rewards add up to the potential gained plus 10, in store and simulator alike."""
    domain = MetaWorld()
    rollout = next(rollout for rollout in domain.collect(5, seed=3) if rollout.is_success)
    potential = POTENTIALS[rollout.goal["task"]](rollout.observations[[0, -1]])
    np.testing.assert_allclose(rollout.rewards.sum(), potential[1] - potential[0] + 10.0, rtol=1e-4)
    goal = TaskGoal(rollout.goal["task"])
    alone = goal.reward(rollout.observations[-2], rollout.actions[-1], rollout.observations[-1])
    np.testing.assert_allclose(rollout.rewards[-1], alone, rtol=1e-5)
