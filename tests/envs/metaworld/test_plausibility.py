"""Real transitions are hardly ever flagged, made-up ones of each kind nearly always.

Shape letters: N transitions.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from kalm.envs.metaworld.layout import ENTITIES, HAND, MOVABLE, OPENING, TARGET, is_present, pose_slice
from kalm.envs.metaworld.plausibility import FLAGS, violations
from tests.benchmarks.metaworld_limits import derive_limits, real_transitions

MOST_OF_REAL = 0.01
LEAST_OF_FALSE = 0.99

Transitions = tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float64]]


@pytest.fixture(scope="module")
def real() -> Transitions:
    """Experts in all 22 tasks, under another seed than the limits come from."""
    return real_transitions({0.1: 2, 0.5: 1}, seed=1234, horizon=100)


def flagged(transitions: Transitions, flag: str) -> float:
    """Share of transitions with a flag."""
    return float(violations(*transitions)[flag].mean())


@pytest.mark.parametrize("flag", FLAGS)
def test_real_transitions_are_plausible(real: Transitions, flag: str) -> None:
    """Less than one in a hundred is flagged, as in storage (32 bits) so in the simulator."""
    assert len(real[0]) > 3000
    stored = tuple(part.astype(np.float32) for part in real)
    assert flagged(real, flag) < MOST_OF_REAL
    assert flagged(stored, flag) < MOST_OF_REAL


def test_things_in_the_air_are_floating(real: Transitions) -> None:
    """What can move is lifted by 20 cm or more with the hand drawn away from it; what is mounted is lifted alike."""
    before, action, after = (part.copy() for part in real)
    rng = np.random.default_rng(0)
    lifted = np.zeros(len(after), dtype=np.bool_)
    for entity in ENTITIES:
        there = is_present(after, entity)
        after[there, pose_slice(entity).start + 2] += rng.uniform(0.2, 0.3, there.sum())
        if entity in MOVABLE:
            place = after[there, pose_slice(entity).start : pose_slice(entity).start + 3]
            after[there, 0], after[there, 1] = np.where(place[:, 0] > 0, -0.3, 0.3), 0.9
        lifted |= there
    assert lifted.all()
    assert flagged((before, action, after), "floating_object") > LEAST_OF_FALSE


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_things_off_the_table_are_out_of_the_workbench(real: Transitions, axis: int) -> None:
    """Every thing and the target location are moved off along one axis, or put into the table."""
    before, action, after = (part.copy() for part in real)
    off = -0.15 if axis == 2 else 1.5
    after[:, TARGET.start + axis] = off
    assert flagged((before, action, after), "out_of_workbench") > LEAST_OF_FALSE
    after[:, TARGET] = real[2][:, TARGET]
    for entity in ENTITIES:
        after[is_present(after, entity), pose_slice(entity).start + axis] = off
    assert flagged((before, action, after), "out_of_workbench") > LEAST_OF_FALSE


def test_hands_out_of_reach_are_implausible_poses(real: Transitions) -> None:
    """Below the table, behind the robot, beyond its reach, a gripper wider than it opens or less than shut."""
    before, action, real_after = real
    for column, value in (
        (0, 0.8),
        (0, -0.8),
        (1, 0.1),
        (1, 1.2),
        (2, -0.05),
        (2, 0.8),
        (OPENING, 1.3),
        (OPENING, 0.1),
    ):
        after = real_after.copy()
        after[:, column] = value
        assert flagged((before, action, after), "implausible_arm_pose") > LEAST_OF_FALSE


def test_leaps_are_beyond_the_dynamics(real: Transitions) -> None:
    """A hand, a gripper, a thing or the target location that jumps; a thing that vanishes."""
    before, action, real_after = real
    shifts = {"hand": HAND, "target": TARGET}
    for columns in shifts.values():
        after = real_after.copy()
        after[:, columns] += 0.06
        assert flagged((before, action, after), "beyond_dynamics_limits") > LEAST_OF_FALSE
    after = real_after.copy()
    after[:, OPENING] += np.where(after[:, OPENING] > 0.6, -0.25, 0.25)
    assert flagged((before, action, after), "beyond_dynamics_limits") > LEAST_OF_FALSE
    for entity in ENTITIES:
        there = is_present(real_after, entity)
        leap, turn, gone = (real_after[there].copy() for _ in range(3))
        start = pose_slice(entity).start
        leap[:, start : start + 2] += 0.07
        turn[:, start + 3 : start + 7] = np.roll(turn[:, start + 3 : start + 7], 1, axis=1)
        gone[:, pose_slice(entity)] = 0.0
        for false in (leap, turn, gone):
            share = flagged((before[there], action[there], false), "beyond_dynamics_limits")
            assert share > LEAST_OF_FALSE, entity


def test_limits_can_be_derived_anew(real: Transitions) -> None:
    """The script's rule, on other rollouts, flags few of the rollouts that it was given."""
    before, action, after = real
    flags = violations(before, action, after, derive_limits(before, after))
    assert all(marked.mean() < MOST_OF_REAL for marked in flags.values())
