"""Success against what a study turned up step by step, as a table and a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kalm.core.errors import DataError
from kalm.report.curves import curve_table, curves
from kalm.report.plots import plot_success_curves
from kalm.report.results import EpisodeRow
from kalm.report.study import curve_quantity, study_rows
from kalm.report.success_table import ReportRow

ROWS = [
    ReportRow("babyai/tabular/many", "many", line="plain", at=1000),
    ReportRow("babyai/tabular/few", "few", line="plain", at=250),
    ReportRow("babyai/tabular/merged", "merged", line="abstract", at=250),
    ReportRow("babyai/tabular/other", "no point of a curve"),
]


def episodes(episode: Callable[..., EpisodeRow]) -> list[EpisodeRow]:
    """Few: one of two, in 10 and 50 steps. Many: both, in 10. Merged: none, in 50. Another one, which is no point."""
    told = {"few": [(True, 10), (False, 50)], "many": [(True, 10)] * 2, "merged": [(False, 50)] * 2}
    told |= {"other": [(True, 1)]}
    return [
        episode(experiment=f"babyai/tabular/{name}", is_success=is_success, num_steps=num_steps, episode_seed=number)
        for name, results in told.items()
        for number, (is_success, num_steps) in enumerate(results)
    ]


def test_a_row_for_each_place_and_two_columns_for_each_line(episode: Callable[..., EpisodeRow]) -> None:
    """250 pairs: 1 of 2 and 30 steps, beside 0 of 2 and 50; 1000: 2 of 2 and 10 steps, and nothing beside."""
    table = curve_table(episodes(episode), ROWS, "pairs")

    assert table is not None
    assert table.header == ("goals", "pairs", "plain", "length", "abstract", "length")
    few, many = table.rows
    assert few[:2] == ("easy", "250")
    assert few[2].startswith("50.0 (")
    assert few[4].startswith("0.0 (")
    assert (few[3], few[5]) == ("30", "50")
    assert many[:2] == ("easy", "1000")
    assert many[2].startswith("100.0 (")
    assert many[3:] == ("10", "-", "-")


def test_points_stand_in_the_order_of_their_places(episode: Callable[..., EpisodeRow]) -> None:
    """Whatever the order of the study's rows."""
    found = curves(episodes(episode), ROWS, "easy")
    assert [at for at, _, _ in found["plain"]] == [250, 1000]
    assert list(found) == ["plain", "abstract"]


def test_without_points_there_is_no_table(episode: Callable[..., EpisodeRow]) -> None:
    """Rows that say of no line that they belong to it."""
    assert curve_table(episodes(episode), ROWS[3:], "pairs") is None


def test_the_picture_is_drawn(episode: Callable[..., EpisodeRow], tmp_path: Path) -> None:
    """A PNG file, from lines of different lengths."""
    path = plot_success_curves(episodes(episode), ROWS, "pairs", tmp_path / "curves.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_study_says_where_its_points_stand() -> None:
    """Line and place of a row, the name of the axis; a row with one of the two alone is a slip."""
    row = {"experiment": "a/b/c", "line": "plain", "at": 250}
    assert study_rows({"report": {"rows": [row]}}, []) == [ReportRow("a/b/c", "a/b/c", line="plain", at=250)]
    assert curve_quantity({"report": {"curve": "pairs"}}) == "pairs"
    with pytest.raises(DataError, match="has both"):
        study_rows({"report": {"rows": [{"experiment": "a/b/c", "at": 250}]}}, [])
