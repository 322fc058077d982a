"""First imagined steps against the simulator, worked out on the chain."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from kalm.callbacks.step_match import StepMatch, step_match
from kalm.core.errors import KalmError
from kalm.core.names import Source
from tests.callbacks.judged import DOMAIN, validate, walk
from tests.chain_domain import CellGoal, ChainDomain

RIGHT_STEP = walk([2, 3, 0], [1, 1], goal=1, split="easy")  # only its second step is impossible
WRONG_STEP = walk([2, 1], [1], goal=1, split="easy")  # right leads to 3, not to 1
ALLOWED = np.full(5, 0.1)


class NextCell(CellGoal):
    """A cell that is one step away."""

    max_steps: ClassVar[int] = 1


class OneStepDomain(ChainDomain):
    """Every goal is one step away."""

    goal_class = NextCell


def test_state_matches_where_the_simulator_goes(tmp_path: Path) -> None:
    """1 of 2 easy rollouts; a goal that takes several steps says nothing about single actions."""
    metrics = validate(tmp_path, StepMatch(), {"imaginary": [RIGHT_STEP]}, {"imaginary": [WRONG_STEP]})
    assert metrics == {"imagine/easy/state_match": 0.5}


def test_training_goals_and_real_rollouts_are_left_to_the_model(tmp_path: Path) -> None:
    """Its own metrics of the same names must not be overwritten."""
    real = walk([2, 3], [1], goal=3, split="easy", source=Source.REAL)
    assert validate(tmp_path, StepMatch(), {"imaginary": [walk([2, 3], [1], goal=4)]}, {"real": [real]}) == {}


def test_tolerance_is_in_standard_deviations_of_every_number(tmp_path: Path) -> None:
    """A wrong cell is an error of 1; the data's deviation is 0.4: 2.4 deviations do not allow it, 2.6 do."""
    for tolerance, match in ((2.4, 0.0), (2.6, 1.0)):
        metrics = validate(tmp_path, StepMatch(tolerance), {"imaginary": [WRONG_STEP]})
        assert metrics["imagine/easy/state_match"] == match


def test_action_matches_where_it_meets_a_goal_one_step_away() -> None:
    """Right from 2 leads to 3: it meets goal 3, whatever was imagined to follow, and misses goal 1."""
    meets = walk([2, 0], [1], goal=3, split="easy")
    assert step_match(OneStepDomain(), [meets, WRONG_STEP], ALLOWED) == {"state_match": 0.0, "action_match": 0.5}
    assert step_match(DOMAIN, [meets], ALLOWED).keys() == {"state_match"}


@pytest.mark.parametrize("tolerance", [0.0, -1.0])
def test_tolerance_must_be_positive(tolerance: float) -> None:
    """The message names the option."""
    with pytest.raises(KalmError, match="tolerance is"):
        StepMatch(tolerance)
