"""How often the goal of a real CLEVR-Robot rollout can be told from the rollout at all.

python -m tests.benchmarks.explanation_ceiling --real checkpoints/clevr_robot/collect/expert/seed=0

Rollouts end when their goal first holds, and with one push several placements may begin to hold. This reader knows the
rules exactly: it takes the placements that hold at the end and never before, of these those whose ball was pushed most,
and guesses among what is left. What it can gain by guessing better, from the path for example, it leaves out.
"""

from __future__ import annotations

import argparse
import sys
from itertools import permutations

import numpy as np

from kalm.envs.clevr_robot import ClevrRobot
from kalm.envs.clevr_robot.goals import PlaceGoal
from kalm.envs.clevr_robot.layout import COLORS, DIRECTIONS, PUSH_DIRECTIONS
from kalm.store.collect import open_domain_store

_LENGTHS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 50))


def main() -> None:
    """Print the reader's expected accuracy by the length of rollouts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", required=True, help="store of real rollouts")
    parser.add_argument("--rollouts", type=int, default=4000)
    arguments = parser.parse_args()
    domain = ClevrRobot()
    store = open_domain_store(domain, arguments.real)
    placements = [PlaceGoal(*balls, side) for balls in permutations(COLORS, 2) for side in DIRECTIONS]
    lengths, chances = [], []
    for number in range(min(arguments.rollouts, store.num_rollouts)):
        rollout = store.rollout(number)
        if not rollout.is_success:
            continue
        begun = [p for p in placements if (holds := p.success(rollout.observations))[-1] and not holds[:-1].any()]
        pushes = np.bincount(rollout.actions // len(PUSH_DIRECTIONS), minlength=len(COLORS))
        likely = [p for p in begun if pushes[COLORS.index(p.source)] == pushes.max()] or begun
        lengths.append(len(rollout))
        chances.append((domain.goal_from_json(rollout.goal) in likely) / len(likely))
    length, chance = np.array(lengths), np.array(chances)
    for first, last in _LENGTHS:
        chosen = (first <= length) & (length <= last)
        if chosen.any():
            sys.stdout.write(f"{first}-{last} steps: {100 * chance[chosen].mean():.1f} % of {chosen.sum()} rollouts\n")
    sys.stdout.write(f"all: {100 * chance.mean():.1f} % of {len(chance)} rollouts\n")


if __name__ == "__main__":
    main()
