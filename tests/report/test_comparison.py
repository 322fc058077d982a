"""Imagination of several models, side by side."""

from __future__ import annotations

import pytest

from kalm.core.errors import DataError
from kalm.report.plots import plot_match_bars
from kalm.report.rollout_tables import ComparedImagination, StoreVerdicts, comparison_table, match_rates
from kalm.report.study import compared_imagination

FULL = ComparedImagination("clevr_robot/imagine/tiny", "all tasks", "full")
ABLATED = ComparedImagination("clevr_robot/imagine/no_dynamics", "two tasks", "without dynamics")
HOT = ComparedImagination("clevr_robot/imagine/tiny_hot", "hot")


def _store(name: str, **counts: tuple[int, int]) -> StoreVerdicts:
    """A store with (rollouts, successes) by split."""
    of_split = {split: {"num_rollouts": total, "success": success} for split, (total, success) in counts.items()}
    return StoreVerdicts(name, "clevr_robot", "imaginary", (), of_split)


def test_seeds_are_added_up_and_experiments_kept_apart():
    """Two seeds of 10 and 30 rollouts with 5 and 25 matches make 75 %; tiny_hot is another experiment than tiny."""
    verdicts = [
        _store("clevr_robot/imagine/tiny/seed=0/store", rephrase=(10, 5)),
        _store("clevr_robot/imagine/tiny/seed=1/store", rephrase=(30, 25)),
        _store("clevr_robot/imagine/tiny_hot/seed=0/store", rephrase=(4, 1), hard=(8, 0)),
    ]
    rates = match_rates(verdicts, [FULL, HOT, ABLATED])
    assert rates["all tasks"]["rephrase"].percent == 75
    # 30 of 40: centre (0.75 + 3.8416 / 80) / (1 + 3.8416 / 40), half a width of 0.1299 to either side.
    assert rates["all tasks"]["rephrase"].interval == pytest.approx((59.81, 85.81), abs=0.01)
    assert rates["two tasks"] == {}
    table = comparison_table(rates)
    assert table.header == ("goal split", "all tasks", "hot", "two tasks")
    assert table.rows == (("rephrase", "75.0 (85)", "25.0", "-"), ("hard", "-", "0.0", "-"))
    assert "up to 40 a cell" in table.note


def test_the_paper_stands_beside_what_it_ablated_too():
    """Table 1 without dynamics: 83, 42 and 15."""
    verdicts = [_store("clevr_robot/imagine/no_dynamics/seed=0/store", rephrase=(2, 1), easy=(2, 1), hard=(2, 1))]
    cells = comparison_table(match_rates(verdicts, [ABLATED])).rows
    assert [cell for _, cell in cells] == ["50.0 (83)", "50.0 (42)", "50.0 (15)"]


def test_a_study_says_what_is_compared():
    """Labels default to experiments; an unknown key is named."""
    study = {"report": {"imagined": [{"experiment": "a/b/c"}, {"experiment": "a/b/d", "label": "D", "paper": "full"}]}}
    assert compared_imagination(study) == [
        ComparedImagination("a/b/c", "a/b/c"),
        ComparedImagination("a/b/d", "D", "full"),
    ]
    assert compared_imagination(None) == []
    with pytest.raises(DataError, match=r"imagined entry 1 .*baseline"):
        compared_imagination({"report": {"imagined": [{"experiment": "a/b/c", "baseline": "a/b/d"}]}})
    with pytest.raises(DataError, match="'plain'.*full, without explanation, without dynamics"):
        compared_imagination({"report": {"imagined": [{"experiment": "a/b/c", "paper": "plain"}]}})


def test_the_comparison_is_drawn_with_its_gaps(tmp_path):
    """A model that did not imagine for a split has no bar there, and nothing fails."""
    verdicts = [
        _store("clevr_robot/imagine/tiny/seed=0/store", rephrase=(10, 10), easy=(10, 0)),
        _store("clevr_robot/imagine/tiny_hot/seed=0/store", easy=(4, 1)),
    ]
    path = plot_match_bars(match_rates(verdicts, [FULL, HOT, ABLATED]), tmp_path / "imagined.png")
    assert path.read_bytes().startswith(b"\x89PNG")
