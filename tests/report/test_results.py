"""Reading results.jsonl."""

from __future__ import annotations

import json

import pytest

from kalm.core.errors import DataError
from kalm.report.results import last_evaluations, last_update, load_results, splits_of


def test_rows_of_every_run_below_the_folder_are_read(write_results, result_line):
    """Two runs, three episodes."""
    root = write_results(result_line(), result_line(episode_seed=2), result_line(seed=1))
    rows = load_results([root])
    assert sorted((row.seed, row.episode_seed) for row in rows) == [(0, 1), (0, 2), (1, 1)]
    assert rows[0].instruction == "Shift the red ball left."


def test_a_folder_given_twice_counts_once(write_results, result_line):
    """A root and a run below it hold the same file."""
    root = write_results(result_line())
    assert len(load_results([root, root / "clevr_robot"])) == 1


def test_an_episode_evaluated_again_counts_once_and_the_later_line_wins(write_results, result_line):
    """A resumed run repeats its last evaluation."""
    root = write_results(result_line(is_success=False), result_line(is_success=True))
    assert [row.is_success for row in load_results([root])] == [True]


def test_a_half_written_last_line_is_left_out(tmp_path, result_line):
    """The writer was killed in the middle of the second line."""
    whole = json.dumps(result_line()) + "\n"
    (tmp_path / "results.jsonl").write_text(whole + whole[:40], encoding="utf-8")
    assert len(load_results([tmp_path])) == 1


def test_every_malformed_line_is_named_at_once(tmp_path, result_line):
    """Line 1 is fine, 2 no JSON, 3 lacks a field and has a bad one, 4 names its split by a number."""
    bad = result_line(is_success="yes")
    del bad["task"]
    lines = [
        json.dumps(result_line()),
        "{nonsense",
        json.dumps(bad),
        json.dumps(result_line(goal_split=2)),
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_results([tmp_path])
    message = str(caught.value)
    assert "line 1:" not in message
    assert "line 2: not JSON" in message
    assert "line 3: task is missing; is_success is 'yes', not bool" in message
    assert "line 4: goal_split is 2, not str" in message


def test_a_boolean_is_not_a_number_of_steps(tmp_path, result_line):
    """Python would take True for 1."""
    (tmp_path / "results.jsonl").write_text(json.dumps(result_line(num_steps=True)) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="num_steps is True, not int"):
        load_results([tmp_path])


def test_the_last_checkpoint_is_the_last_test_of_each_run(episode):
    """Seed 0 was tested at 100 and 200 and validated at 300; seed 1 only validated: no table shows both stages."""
    rows = [
        episode(update=100),
        episode(update=200),
        episode(update=300, stage="validate"),
        episode(seed=1, update=50, stage="validate"),
    ]
    assert [(row.seed, row.update, row.stage) for row in last_update(rows)] == [(0, 200, "test")]


def test_where_nothing_was_tested_the_last_validation_counts(episode):
    """Seed 0 was validated at 300, seed 1 at 50 and 60."""
    rows = [episode(seed=seed, update=update, stage="validate") for seed, update in ((0, 300), (1, 50), (1, 60))]
    assert [(row.seed, row.update) for row in last_update(rows)] == [(0, 300), (1, 60)]


def test_last_evaluations_take_only_runs_with_enough_of_them(episode):
    """Seed 0 was validated at 10, 20, 30; seed 1 once: the mean of its last two does not exist."""
    rows = [episode(update=update, stage="validate") for update in (30, 10, 20)]
    rows += [episode(seed=1, update=30, stage="validate"), episode(update=40)]
    assert [[row.update for row in evaluation] for evaluation in last_evaluations(rows, 2)] == [[20], [30]]


def test_splits_come_in_the_order_of_novelty(episode):
    """Not in the order of the file, and not those without episodes."""
    assert splits_of([episode(goal_split="hard"), episode(goal_split="train")]) == ["train", "hard"]
