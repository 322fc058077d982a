"""Verdicts by task: counted, replayed, written once the store is finished, and shown by the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kalm.callbacks.imagined_tasks import ImaginedTasks, task_counts
from kalm.callbacks.rollout_writer import RolloutWriter
from kalm.core.errors import DataError, KalmError
from kalm.report.rollout_tables import load_task_verdicts, task_verdict_table
from kalm.runs.folder import TASKS_FILE
from tests.callbacks.test_rollout_writer import Walker, goal_data
from tests.chain_domain import ChainDomain
from tests.data.rollouts import write_store
from tests.envs.test_simulation import walk
from tests.rl.helpers import trainer

DOMAIN = ChainDomain()
SOUND, JUMPED, MISSED = walk(2, [0, 1, 2], [1, 1]), walk(2, [0, 2], [1]), walk(2, [0, 1], [1])


def test_counts_are_of_each_task(tmp_path: Path) -> None:
    """In the centre: 3 of 4 claim it, 1 of them soundly, 1 of the first 2 comes true; at the end: none claims it."""
    store = write_store(tmp_path / "store", [JUMPED, SOUND, JUMPED, MISSED, walk(4, [0, 1], [1])])
    centre, end = task_counts(DOMAIN, store, num_replayed=2)
    assert centre == {
        "goal_split": "hard",
        "task": "centre",
        "num_rollouts": 4,
        "plausible": 2,
        "success": 3,
        "both": 1,
        "num_replayed": 2,
        "replayed_success": 1,
        "drift": pytest.approx(np.sqrt(0.4) / 2),
    }
    assert (end["task"], end["num_rollouts"], end["success"], end["drift"]) == ("right_end", 1, 0, None)


def test_prediction_ends_with_the_counts(tmp_path: Path) -> None:
    """Of everything in the store; also where all had been imagined before, and the file was lost."""
    run = tmp_path / "run"
    run.mkdir()
    for _ in range(2):
        data = goal_data(tmp_path)
        callbacks = [RolloutWriter(), ImaginedTasks(num_replayed=3)]
        trainer(run, -1, callbacks).predict(Walker(), data, return_predictions=False)
        counts = json.loads((run / TASKS_FILE).read_text(encoding="utf-8"))
        assert sum(entry["num_rollouts"] for entry in counts) == 12
        assert all(entry["replayed_success"] == entry["num_replayed"] <= 3 for entry in counts)  # walks do not cheat
        (run / TASKS_FILE).unlink()


def test_it_must_stand_behind_the_writer(tmp_path: Path) -> None:
    """In front of it there would be nothing to count."""
    callbacks = [ImaginedTasks(), RolloutWriter()]
    with pytest.raises(KalmError, match="it must stand behind it"):
        trainer(tmp_path, -1, callbacks).predict(Walker(), goal_data(tmp_path), return_predictions=False)


def test_a_negative_number_is_refused() -> None:
    """Before anything is imagined."""
    with pytest.raises(KalmError, match="num_replayed is -1; it must be 0 or more"):
        ImaginedTasks(num_replayed=-1)


def test_the_report_shows_rounds_in_their_order(tmp_path: Path) -> None:
    """Round 2 before round 10. Of 4 + 1 rollouts 3 meet their goal: 60 %; 1 of 2 replayed ones comes true."""
    store = write_store(tmp_path / "store", [JUMPED, SOUND, JUMPED, MISSED, walk(4, [0, 1], [1])])
    for name in ("round10", "round2"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        counts = task_counts(DOMAIN, store, num_replayed=2)
        (folder / TASKS_FILE).write_text(json.dumps(counts), encoding="utf-8")
    verdicts = load_task_verdicts([tmp_path / "runs"])
    assert [found.name for found in verdicts] == ["round2", "round10"]
    table = task_verdict_table(verdicts[:1])
    assert table.header == ("run", "centre", "right_end", "all")
    assert table.rows == (
        ("round2: meet their goal %", "75.0", "0.0", "60.0"),
        ("round2: kept %", "25.0", "0.0", "20.0"),
        ("round2: true in the simulator %", "50.0", "-", "50.0"),
        ("round2: drift", "0.316", "-", "0.316"),
    )


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """With the way out."""
    (tmp_path / TASKS_FILE).write_text('[{"task": "centre"}]', encoding="utf-8")
    with pytest.raises(DataError, match=r"tasks\.json cannot be read .* imagine again"):
        load_task_verdicts([tmp_path])
