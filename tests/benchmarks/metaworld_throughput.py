"""Steps a second of ``kalm/MetaWorld-v0`` against the bare package's environment, and of the vector environment.

    python tests/benchmarks/metaworld_throughput.py [--repeats 3] [--clock cpu]

Single environments take the same actions in the same tasks; kalm's computes its own reward, verdict and 91 numbers, the
package's its own. Repeats alternate and medians are compared, because machines drift; ``--clock cpu`` counts processor
time, for machines that are shared (the vector environment's figure needs ``wall``). The issue asks for at least 90 % of
the bare package's speed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np

import kalm.envs  # noqa: F401  # registers the environment
from kalm.envs.metaworld.domain import MetaWorld
from kalm.envs.metaworld.goals import TaskGoal
from kalm.envs.metaworld.scene import Scene
from kalm.envs.metaworld.tasks import TASKS

NUM_STEPS = 90
TRAINING_TASKS = [name for name, task in TASKS.items() if task.goal_split == "train"]
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (NUM_STEPS, 4)).astype(np.float32)


def package_steps_per_second(task: str, clock: Callable[[], float]) -> float:
    """The package's ``step``, after its own reset."""
    env = _PACKAGE_ENVS[task]
    env.seed(0)
    env.reset()
    start = clock()
    for action in ACTIONS:
        env.step(action)
    return NUM_STEPS / (clock() - start)


def kalm_steps_per_second(task: str, clock: Callable[[], float]) -> float:
    """The registered environment's ``step``."""
    env = _KALM_ENV
    env.reset(seed=0, options={"goal": task})
    start = clock()
    num_steps = 0
    for action in ACTIONS:
        num_steps += 1
        if any(env.step(action)[2:4]):
            break
    return num_steps / (clock() - start)


def vector_steps_per_second(num_envs: int) -> float:
    """Episodes of all training tasks side by side, on all cores, by the clock on the wall."""
    env = MetaWorld().make_vector_env(num_envs)
    goals = [TaskGoal(TRAINING_TASKS[row % len(TRAINING_TASKS)]) for row in range(num_envs)]
    env.reset(seed=list(range(num_envs)), options={"goals": goals})
    num_steps, start = 0, time.perf_counter()
    for action in ACTIONS:
        _, _, terminated, truncated, _ = env.step(np.tile(action, (num_envs, 1)))
        num_steps += int((~(terminated | truncated)).sum())
    seconds = time.perf_counter() - start
    env.close()
    return num_steps / seconds


def main() -> None:
    """Print a line a task, and the ratio over all tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="wall")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    ratios = []
    for task in TRAINING_TASKS:
        pairs = [
            (package_steps_per_second(task, clock), kalm_steps_per_second(task, clock))
            for _ in range(arguments.repeats)
        ]
        package, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios.append(ours / package)
        sys.stdout.write(f"{task:15s} package {package:6.0f}  kalm {ours:6.0f}  ratio {ours / package:.2f}\n")
    sys.stdout.write(f"ratio, median of {len(ratios)} tasks: {statistics.median(ratios):.2f}\n")
    sys.stdout.write(f"vector environment, 64 episodes, all cores: {vector_steps_per_second(64):.0f} steps/s\n")


_KALM_ENV = gym.make("kalm.envs.metaworld:kalm/MetaWorld-v0").unwrapped


def _package_env(task: str) -> gym.Env:
    env = Scene(TASKS[task]).env
    del env._reset_hand  # the package's own again, in place of the scene's short cut
    return env


_PACKAGE_ENVS = {task: _package_env(task) for task in TRAINING_TASKS}

if __name__ == "__main__":
    main()
