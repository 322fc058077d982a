"""Plausibility: real transitions pass, impossible ones are marked, and the limits follow from real data."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from kalm.envs.clevr_robot import ClevrRobot
from kalm.envs.clevr_robot.plausibility import LIMITS
from tests.benchmarks.clevr_robot_limits import measure_limits

LAYOUT = np.array([-0.4, 0.4, 0.4, 0.4, -0.4, -0.1, 0.4, -0.1, 0.0, 0.2])


def flags_of(action: int, **moves: tuple[float, float]) -> tuple[bool, bool]:
    """Flags (out of workbench, beyond dynamics limits) of a transition that moves ball ``b<i>`` by an offset."""
    after = LAYOUT.copy()
    for ball, offset in moves.items():
        index = int(ball[1:])
        after[2 * index : 2 * index + 2] += offset
    flags = ClevrRobot().plausibility(LAYOUT, np.array(action), after)
    return bool(flags["out_of_workbench"]), bool(flags["beyond_dynamics_limits"])


@pytest.mark.parametrize(
    ("action", "moves", "expected"),
    [
        (32, {"b4": (0.25, 0.0)}, (False, False)),  # a free push
        (32, {"b4": (0.36, 0.0)}, (False, True)),  # farther than any push
        (32, {"b0": (0.33, 0.0)}, (False, True)),  # so far only the pushed ball goes
        (0, {"b0": (0.33, 0.0)}, (False, False)),
        (0, {"b0": (-0.13, 0.0)}, (True, False)),  # through the left wall, which stops centres at -0.47
        (8, {"b1": (0.0, 0.25)}, (True, False)),
        (16, {"b2": (0.5, -0.5)}, (True, True)),
    ],
)
def test_impossible_transitions_are_marked(action: int, moves: dict, expected: tuple[bool, bool]) -> None:
    """Each flag is raised by what it names and by nothing else."""
    assert flags_of(action, **moves) == expected


@pytest.mark.parametrize("action_noise", [0.0, 1.0])
def test_real_transitions_are_plausible(action_noise: float) -> None:
    """Fewer than 1 % of the expert's and of random transitions are marked, on seeds that set no limit."""
    rollouts = list(ClevrRobot(action_noise).collect(200 if action_noise == 0 else 16, seed=77))
    num_transitions = sum(map(len, rollouts))
    for flag in ClevrRobot.plausibility_flags:
        assert sum(rollout.violations[flag] for rollout in rollouts) < 0.01 * num_transitions


def test_limits_follow_from_real_transitions() -> None:
    """The stored limits are what a small sample of another seed gives, within 0.02 (``max_others``: 0.06)."""
    derived = asdict(measure_limits(num_rollouts=40, seed=5))
    for name, limit in asdict(LIMITS).items():
        assert derived[name] == pytest.approx(limit, abs=0.06 if name == "max_others" else 0.02), name
