"""The table of success, length and invalid actions, beside what TEDUO reports."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kalm.core.errors import DataError
from kalm.report.behaviour_table import behaviour_table
from kalm.report.results import EpisodeRow
from kalm.report.study import reported_behaviour
from kalm.report.success_table import ReportRow

STUDENT = ReportRow("babyai/distil/planner", "student")


def rows_of(episode: Callable[..., EpisodeRow], split: str = "new_grids") -> list[EpisodeRow]:
    """Two picked up within 10 steps, one of them with 5 invalid; one opened of two, after 20 and 60 steps."""
    told = [("pick_up", True, 10, 5), ("pick_up", True, 10, 0), ("open", True, 20, 0), ("open", False, 60, 5)]
    return [
        episode(
            experiment=STUDENT.experiment,
            goal_split=split,
            task=task,
            is_success=is_success,
            num_steps=num_steps,
            num_invalid=num_invalid,
            episode_seed=number,
        )
        for number, (task, is_success, num_steps, num_invalid) in enumerate(told)
    ]


def test_rates_lengths_and_invalid_actions(episode: Callable[..., EpisodeRow]) -> None:
    """3 of 4 succeed; kinds have 100 and 50; 100 steps / 4 episodes; 10 of 100 actions change nothing."""
    table = behaviour_table(rows_of(episode), [STUDENT])

    assert table is not None
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["policy"] == "student"
    assert row["success"].startswith("75.0 (")
    assert [row[name] for name in ("goals", "mean", "length", "invalid", "pick_up", "open")] == [
        *("new_grids", "75.0", "25", "10.0", "100.0", "50.0"),
    ]


def test_kinds_weigh_the_same_however_many_episodes_they_have(episode: Callable[..., EpisodeRow]) -> None:
    """Without one of the two that opened nothing: success is 3 of 3, and with one fewer picked up 1 of 2."""
    table = behaviour_table(rows_of(episode)[1:], [STUDENT])

    assert table is not None
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["success"].startswith("66.7 (")
    assert row["mean"] == "75.0"


def test_the_paper_stands_below_with_its_kinds(episode: Callable[..., EpisodeRow]) -> None:
    """TEDUO's 53 %, 257 steps, 27 % on new grids, 39 of pick up and 100 of open; only what it reports of this split."""
    table = behaviour_table(rows_of(episode), [STUDENT])

    assert table is not None
    of_paper = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows[1:]}
    teduo = of_paper["paper: TEDUO, Llama-3-8B"]
    assert [teduo[name] for name in ("success", "mean", "length", "invalid", "pick_up", "open")] == [
        *("53", "51.0", "257", "27", "39", "100"),
    ]
    assert "paper: steps 1 and 2, tabular" not in of_paper  # it reports training goals on training grids alone


def test_a_study_can_ask_for_another_table_of_the_paper(episode: Callable[..., EpisodeRow]) -> None:
    """Skills: TEDUO learned A and B and solves 60 % of C; of A on A the text has neither length nor invalid actions."""
    reported = reported_behaviour({"report": {"paper": "skills"}})

    table = behaviour_table(rows_of(episode), [STUDENT], reported)

    assert table is not None
    of_paper = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows[1:]}
    assert [of_paper["paper: TEDUO of A and B, on C"][name] for name in ("success", "length", "invalid")] == [
        *("60", "16", "37"),
    ]
    assert [of_paper["paper: TEDUO of A, on A"][name] for name in ("success", "length")] == ["99", "-"]
    assert "paper: TEDUO, Llama-3-8B" not in of_paper


def test_a_table_that_the_paper_does_not_have_is_named_with_those_that_it_has() -> None:
    """A slip of the pen; and a study that names none has the main table."""
    with pytest.raises(DataError, match="'skill'.*allowed: skills, num_goals,.* mixtures;"):
        reported_behaviour({"report": {"paper": "skill"}})
    assert reported_behaviour({"report": {}}) is None


def test_no_table_of_worlds_that_cannot_tell(episode: Callable[..., EpisodeRow]) -> None:
    """CLEVR-Robot says of no action that it is invalid."""
    assert behaviour_table([episode()], [ReportRow("clevr_robot/bc/real", "BC")]) is None
