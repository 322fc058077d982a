"""Rollouts in the package's own environments, past everything of kalm's but the reading of the 91 numbers.

Shape letters: T steps.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.envs.metaworld.expert import expert
from kalm.envs.metaworld.scene import Scene
from kalm.envs.metaworld.tasks import TASKS

PACKAGE_TASKS = [name for name, task in TASKS.items() if task.scene != name]
COMPOSED_TASKS = [name for name, task in TASKS.items() if task.scene == name]


@dataclass(frozen=True)
class PackageRollout:
    """What the package said, step by step.

    Attributes:
        observations: The 91 numbers, shape (T + 1, 91).
        rewards: The package's, shape (T,).
        successes: The package's ``info["success"]``, shape (T,).
    """

    observations: NDArray[np.float64]
    rewards: NDArray[np.float64]
    successes: NDArray[np.bool_]


def package_rollouts(task: str, seeds: range, num_steps: int, action_noise: float) -> list[PackageRollout]:
    """The noisy expert in the package's environment, reset and stepped by the package; each ends on success."""
    scene = Scene(TASKS[task])
    env: Any = scene.env
    del env._reset_hand  # the package's own again, in place of the scene's short cut
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Constant.s. may be too high")
        return [_rollout(scene, seed, num_steps, action_noise) for seed in seeds]


def _rollout(scene: Scene, seed: int, num_steps: int, action_noise: float) -> PackageRollout:
    env, act, rng = scene.env, expert(scene.task.name), np.random.default_rng(seed)
    env.seed(seed)
    env.reset()
    target = np.array(env._target_pos)
    observations, rewards, successes = [scene.read(target)], [], []
    for _ in range(num_steps):
        action = np.clip(act(observations[-1]) + action_noise * rng.standard_normal(4), -1.0, 1.0)
        _, reward, _, _, info = env.step(action.astype(np.float32))
        observations.append(scene.read(target))
        rewards.append(float(reward))
        successes.append(bool(info["success"]))
        if successes[-1]:
            break
    return PackageRollout(np.stack(observations), np.array(rewards), np.array(successes))
