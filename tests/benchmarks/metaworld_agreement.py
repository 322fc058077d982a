"""How far Meta-World's rules on 91 numbers agree with the package's own verdicts and rewards, task by task.

    python -m tests.benchmarks.metaworld_agreement [--rollouts 10] [--noise 0.2] [--steps 100]

The experts act with noise in the package's environments, which reset, step, judge and reward by themselves. A line a
task: on what share of steps the verdicts are equal, how the potential correlates with the package's v2 reward, how far
they are apart at most (of 10), and how their changes from step to step correlate, which is what kalm's reward pays.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from kalm.envs.metaworld.potential import POTENTIALS
from kalm.envs.metaworld.success import SUCCESS
from tests.envs.metaworld.package_rollouts import PACKAGE_TASKS, package_rollouts


def agreement(task: str, num_rollouts: int, num_steps: int, noise: float) -> str:
    """One line of the table."""
    rollouts = package_rollouts(task, range(num_rollouts), num_steps, noise)
    observations = np.concatenate([rollout.observations[1:] for rollout in rollouts])
    successes = np.concatenate([rollout.successes for rollout in rollouts])
    rewards = np.concatenate([rollout.rewards for rollout in rollouts])
    potentials = POTENTIALS[task](observations)
    gained = np.concatenate([np.diff(POTENTIALS[task](rollout.observations[1:])) for rollout in rollouts])
    paid = np.concatenate([np.diff(rollout.rewards) for rollout in rollouts])
    equal = (SUCCESS[task](observations) == successes).mean()
    return (
        f"{task:18s} {len(rewards):6d} {equal:9.2%} {np.corrcoef(potentials, rewards)[0, 1]:12.3f} "
        f"{np.abs(potentials - rewards).max():9.2f} {np.corrcoef(gained, paid)[0, 1]:12.3f}\n"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--noise", type=float, default=0.2)
    arguments = parser.parse_args()
    sys.stdout.write("task                steps  verdicts  correlation  farthest  of changes\n")
    for task in PACKAGE_TASKS:
        sys.stdout.write(agreement(task, arguments.rollouts, arguments.steps, arguments.noise))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
