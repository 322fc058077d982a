"""Every malformed field of a rollout is named, all at once, with rollout, step and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kalm.core.errors import DataError
from kalm.core.rollout import Rollout
from kalm.core.specs import vector_spec
from kalm.core.validation import validate_rollout
from tests.data.rollouts import DOMAIN, broken, imagined_rollouts, real_rollouts, writer

SPEC = DOMAIN.spec
WALK = next(r for r in imagined_rollouts(60, "easy") if len(r) == 6)


def altered(field: str, place: Any, value: Any) -> Rollout:
    """The six-step walk with one entry of one array changed."""
    array = getattr(WALK, field).copy()
    array[place] = value
    return broken(WALK, **{field: array})


def test_well_formed_rollouts_have_no_problem() -> None:
    """What the chain world makes passes."""
    for rollout in [*real_rollouts(20), *imagined_rollouts(20, "hard")]:
        assert validate_rollout(rollout, SPEC) == []


@pytest.mark.parametrize(
    ("rollout", "problem"),
    [
        (altered("observations", (3, 1), np.nan), "observations: nan at step 3, column 1"),
        (altered("rewards", 2, np.inf), "rewards: inf at step 2"),
        (altered("actions", 4, 2), "actions: 2 at step 4; allowed are integers in [0, 2)"),
        (altered("actions", 1, -1), "actions: -1 at step 1"),
        (altered("terminated", 2, True), "terminated: True at step 2, but only the last step (5)"),
        (altered("truncated", 0, True), "truncated: True at step 0"),
        (broken(WALK, observations=WALK.observations[:-1]), "observations: shape (6, 5), expected a float array of"),
        (broken(WALK, observations=WALK.observations[:, :4]), "observations: shape (7, 4)"),
        (broken(WALK, observations=WALK.observations.astype(str)), "observations: dtype <U"),
        (broken(WALK, observations=None), "observations: NoneType, expected a float array of shape (7, 5)"),
        (broken(WALK, observations=WALK.observations.astype(np.float64) * 1e39), "observations: 1e+39 at step 0"),
        (broken(WALK, actions=WALK.actions.astype(float)), "actions: dtype float64, expected an integer array"),
        (broken(WALK, actions=list(WALK.actions)), "actions: list, expected an integer array of shape (T,)"),
        (broken(WALK, actions=np.array(1)), "actions: shape ()"),
        (broken(WALK, rewards=WALK.rewards[:3]), "rewards: shape (3,), expected a float array of shape (6,)"),
        (broken(WALK, terminated=WALK.terminated.astype(int)), "terminated: dtype int64, expected a bool array"),
        (broken(WALK, instruction=" "), "instruction: ' '"),
        (broken(WALK, goal={}), "goal: empty"),
        (broken(WALK, goal={"cell": np.int64(3)}), "goal: not plain JSON"),
        (broken(WALK, goal_split=2), "goal_split: 2, expected the name of a goal split"),
        (broken(WALK, source=1), "source: 1, expected one of real, imaginary"),
        (broken(WALK, is_success=None), "is_success: None"),
        (broken(WALK, provenance={"seed": {1, 2}}), "provenance: not plain JSON"),
        (broken(WALK, violations=[1]), "violations: list"),
    ],
)
def test_each_fault_is_named(rollout: Rollout, problem: str) -> None:
    """One fault, one line: the field, what was found and where."""
    problems = validate_rollout(rollout, SPEC)
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_a_step_cannot_end_for_two_reasons() -> None:
    """Terminated and truncated are never merged."""
    last = np.arange(6) == 5
    problems = validate_rollout(broken(WALK, terminated=last, truncated=last), SPEC)
    assert problems == ["terminated, truncated: both True at step 5; a step ends for one reason"]


def test_a_rollout_without_steps_is_named() -> None:
    """Zero length is an error of its own."""
    flags = np.zeros(0, dtype=np.bool_)
    empty = broken(
        WALK,
        observations=WALK.observations[:1],
        actions=WALK.actions[:0],
        rewards=WALK.rewards[:0],
        terminated=flags,
        truncated=flags,
    )
    assert validate_rollout(empty, SPEC) == ["actions: the rollout has no step; at least one is needed"]


def test_continuous_actions_are_checked_against_their_bounds() -> None:
    """First offending step, column and value; NaN is found too."""
    spec = vector_spec(observation_size=5, action_size=2, is_discrete=False)
    actions = np.zeros((6, 2), dtype=np.float32)
    assert validate_rollout(broken(WALK, actions=actions), spec) == []
    actions[3, 1] = 1.5
    (problem,) = validate_rollout(broken(WALK, actions=actions), spec)
    assert problem == "actions: 1.5 at step 3, column 1; allowed are numbers in [-1, 1]"
    actions[3, 1] = np.nan
    (problem,) = validate_rollout(broken(WALK, actions=actions), spec)
    assert problem.startswith("actions: nan at step 3, column 1")


def test_the_writer_names_every_fault_of_every_rollout_and_stores_nothing(tmp_path: Path) -> None:
    """All at once, by rollout, field and step."""
    store_writer = writer(tmp_path / "store")
    faulty = [
        WALK,
        broken(altered("actions", 4, 9), rewards=WALK.rewards[:2], instruction=""),
        broken(WALK, violations={"jumped": 0}),
    ]
    with pytest.raises(DataError) as caught:
        store_writer.append("0", faulty)
    message = str(caught.value)
    assert "rollout 1: actions: 9 at step 4" in message
    assert "rollout 1: rewards: shape (2,)" in message
    assert "rollout 1: instruction: ''" in message
    assert "rollout 2: violations: {'jumped': 0}, expected a count for each of jumped, nowhere" in message
    assert "rollout 0" not in message
    assert store_writer.finished_shards == set()
