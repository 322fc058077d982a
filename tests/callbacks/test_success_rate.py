"""What the success-rate callback logs and writes, and that no episode is counted twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kalm.callbacks.success_rate import SuccessRate
from kalm.envs.evaluation import wilson_interval
from kalm.report.results import load_results
from kalm.rl.bc import BC
from kalm.runs.folder import RESULTS_FILE
from tests.rl.helpers import chain_data, trainer


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All lines of results.jsonl."""
    return [json.loads(line) for line in (folder / RESULTS_FILE).read_text().splitlines()]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder as the command line names it."""
    return tmp_path / "checkpoints" / "chain" / "bc" / "plain" / "seed=3"


def fit(tmp_path: Path, run: Path, max_steps: int) -> BC:
    """Train with a validation every second step of five updates: at 10, 20, ..."""
    data = chain_data(tmp_path)
    policy = BC(data.spec, hidden_sizes=[16])
    trainer(run, max_steps, [SuccessRate()], limit_val_batches=1.0, val_check_interval=2).fit(policy, data)
    return policy


def test_every_episode_becomes_a_line_that_the_report_can_read(tmp_path: Path, run: Path) -> None:
    """Two validations of 4 splits x 8 episodes; experiment and seed come from the folder."""
    fit(tmp_path, run, 20)
    rows = rows_of(run)
    assert len(rows) == 64
    assert {row["update"] for row in rows} == {10, 20}
    assert {(row["experiment"], row["seed"], row["algorithm"], row["stage"]) for row in rows} == {
        ("chain/bc/plain", 3, "BC", "validate")
    }
    assert rows[0]["goal"]["type"] == "cell"
    assert rows[0].keys() == {
        *("experiment", "algorithm", "seed", "update", "stage", "goal_split", "task", "goal", "instruction"),
        *("episode_seed", "is_success", "num_steps", "episode_return"),
    }
    assert len(load_results([run])) == 64


def test_logged_rates_are_those_of_the_lines(tmp_path: Path, run: Path) -> None:
    """Success a split, its interval, and a task, all out of the test's own lines."""
    data = chain_data(tmp_path)
    metrics = trainer(run, -1, [SuccessRate()]).test(BC(data.spec), data, verbose=False)[0]
    rows = [row for row in rows_of(run) if row["goal_split"] == "train"]
    successes = sum(row["is_success"] for row in rows)
    assert len(rows) == 20
    assert 0 < successes < 20
    assert metrics["test/train/success_rate"] == pytest.approx(successes / 20)
    low, high = wilson_interval(successes, 20)
    assert metrics["test/train/success_rate_low"] == pytest.approx(low)
    assert metrics["test/train/success_rate_high"] == pytest.approx(high)
    by_task = {task: [r["is_success"] for r in rows if r["task"] == task] for task in ("left_end", "right_end")}
    for task, verdicts in by_task.items():
        assert metrics[f"test/train/{task}/success_rate"] == pytest.approx(sum(verdicts) / len(verdicts))
    macro = sum(sum(verdicts) / len(verdicts) for verdicts in by_task.values()) / 2
    assert metrics["test/train/macro_success_rate"] == pytest.approx(macro)


def test_the_same_test_twice_leaves_one_line_an_episode(tmp_path: Path, run: Path) -> None:
    """The second run's lines replace the first's; validation lines stay."""
    policy = fit(tmp_path, run, 20)
    for _ in range(2):
        trainer(run, -1, [SuccessRate()]).test(policy, chain_data(tmp_path), verbose=False)
    stages = [row["stage"] for row in rows_of(run)]
    assert (stages.count("validate"), stages.count("test")) == (64, 80)


def test_a_restarted_run_forgets_what_the_killed_one_saw_later(tmp_path: Path, run: Path) -> None:
    """Lines of updates beyond the starting point go, with the half line a kill left; tests stay."""
    fit(tmp_path, run, 20)
    path = run / RESULTS_FILE
    first = json.loads(path.read_text().splitlines()[0])
    tested = json.dumps({**first, "stage": "test", "update": 999})
    path.write_text(path.read_text() + tested + "\n" + '{"experiment": "ch')
    fit(tmp_path, run, 10)
    rows = rows_of(run)
    assert [row["update"] for row in rows if row["stage"] == "test"] == [999]
    assert [row["update"] for row in rows if row["stage"] == "validate"] == [10] * 32
