"""Filters, limits and verdict counts on rollouts whose verdicts are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalm.core.errors import DataError
from kalm.core.rollout import Rollout
from kalm.data.choice import RolloutFilter, first_rollouts, passing, verdict_counts
from kalm.data.rollout_sources import RealRollouts
from kalm.data.selection import Selection
from kalm.store.reader import RolloutStore
from tests.data.rollouts import DOMAIN, broken, imagined_rollouts, real_rollouts, write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RolloutStore:
    """Rows 0-3: easy, verdicts (success, plausible) in the order 11, 10, 01, 00; row 4: hard, 11."""
    return write_store(
        tmp_path_factory.mktemp("verdicts") / "store",
        [
            judged("easy", is_success=True, jumped=0, nowhere=0),
            judged("easy", is_success=True, jumped=2, nowhere=0),
            judged("easy", is_success=False, jumped=0, nowhere=0),
            judged("easy", is_success=False, jumped=1, nowhere=1),
            judged("hard", is_success=True, jumped=0, nowhere=0),
        ],
    )


def judged(split: str, is_success: bool, jumped: int, nowhere: int) -> Rollout:
    """A rollout of 6 steps with the given verdicts."""
    rollout = next(r for r in imagined_rollouts(60, split) if len(r) == 6 and not r.is_success)
    return broken(rollout, is_success=is_success, violations={"jumped": jumped, "nowhere": nowhere})


@pytest.mark.parametrize(
    ("name", "rows"),
    [("none", [0, 1, 2, 3, 4]), ("plausible", [0, 2, 4]), ("success", [0, 1, 4]), ("both", [0, 4])],
)
def test_each_filter_keeps_its_rollouts(store: RolloutStore, name: str, rows: list[int]) -> None:
    """Plausible means that no flag marks any transition."""
    assert passing(Selection.whole([store]), RolloutFilter[name]).rollouts.tolist() == rows


def test_limit_and_splits_apply_after_the_filter(store: RolloutStore) -> None:
    """The first two that succeed; the easy ones that succeed."""
    whole = Selection.whole([store])
    assert first_rollouts(passing(whole, RolloutFilter.success), 2).rollouts.tolist() == [0, 1]
    assert passing(whole, RolloutFilter.success).of_goal_split("easy").rollouts.tolist() == [0, 1]
    limited = RealRollouts(str(store.path), RolloutFilter.plausible, max_rollouts=2).choose(DOMAIN, whole)
    assert limited.rollouts.tolist() == [0, 2]


def test_counts_of_each_split(store: RolloutStore) -> None:
    """Four easy rollouts of six steps: 2 succeed, 2 are plausible, 1 is both; 3 transitions jump, 1 is nowhere."""
    easy = {"num_rollouts": 4, "plausible": 2, "success": 2, "both": 1, "num_transitions": 24}
    hard = {"num_rollouts": 1, "plausible": 1, "success": 1, "both": 1, "num_transitions": 6}
    easy |= {"jumped": 3, "nowhere": 1}
    hard |= {"jumped": 0, "nowhere": 0}
    assert verdict_counts(store) == {"easy": easy, "hard": hard}


def test_a_limit_of_no_rollouts_is_refused() -> None:
    """None means all of them; 0 would mean nothing to learn from."""
    with pytest.raises(DataError, match="max_rollouts is 0"):
        RealRollouts("somewhere", max_rollouts=0).check()


def test_real_rollouts_pass_every_plausibility_check(tmp_path: Path) -> None:
    """The rule itself, not stored verdicts: nothing the world did is implausible."""
    counts = verdict_counts(write_store(tmp_path / "real", real_rollouts(50)))["train"]
    assert counts["plausible"] == 50
    assert counts["jumped"] == counts["nowhere"] == 0
