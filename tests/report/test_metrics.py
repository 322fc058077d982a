"""Reading Lightning's metrics.csv."""

from __future__ import annotations

from kalm.report.results import MetricLog, grounding_table, load_metrics


def _write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_sparse_columns_become_curves(tmp_path):
    """Two metrics logged at different updates, one that nobody asked for, one that is not finite."""
    run = tmp_path / "clevr_robot" / "ground" / "tiny" / "seed=0"
    _write(
        run / "metrics.csv",
        "epoch,step,explain/seen_prompt_accuracy,imagine/easy/action_match,train/loss",
        "0,10,0.25,,3.5",
        "0,20,,0.5,2.5",
        "0,30,0.75,nan,1.5",
    )
    (log,) = load_metrics([tmp_path])
    assert log.name == "clevr_robot/ground/tiny/seed=0"
    assert log.curve("explain/seen_prompt_accuracy") == ([10, 30], [0.25, 0.75])
    assert log.curve("imagine/easy/action_match") == ([20], [0.5])
    assert log.curve("train/loss") == ([], [])
    assert log.last("explain/seen_prompt_accuracy") == 0.75
    assert log.last("train/loss") is None


def test_an_update_logged_twice_keeps_the_later_row(tmp_path):
    """A resumed run repeats what it lost."""
    _write(tmp_path / "ground" / "seed=0" / "metrics.csv", "step,explain/x", "1,0.1", "2,0.2", "2,0.5", "3,0.6")
    (log,) = load_metrics([tmp_path / "ground" / "seed=0"])
    assert log.name == "seed=0"
    assert log.curve("explain/x") == ([1, 2, 3], [0.1, 0.5, 0.6])


def test_a_half_written_last_row_is_no_error(tmp_path):
    """The run is still writing: the row ends before its metrics."""
    (tmp_path / "metrics.csv").write_text("step,explain/x,train/loss\n1,0.5,2.0\n2", encoding="utf-8")
    (log,) = load_metrics([tmp_path])
    assert log.curve("explain/x") == ([1], [0.5])


def test_runs_without_grounding_metrics_are_left_out(tmp_path):
    """A policy's metrics are not the LLM's."""
    _write(tmp_path / "metrics.csv", "step,train/bc_loss", "1,0.1")
    assert load_metrics([tmp_path]) == []


def test_the_grounding_table_shows_last_values_beside_the_papers():
    """Accuracy 0.5 then 0.9 is shown as 90.0; a metric that no run logged has no row."""
    log = MetricLog(
        "run", {"explain/seen_prompt_accuracy": {1: 0.5, 2: 0.9}, "imagine/rephrase/success_rate": {2: 0.25}}
    )
    table = grounding_table([log])
    assert table.rows == (("explanation, seen prompt", "90.0", "> 85"), ("imagined rephrase: success", "25.0", "-"))
