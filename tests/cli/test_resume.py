"""A run that was stopped and resumed is the run that was not."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.chain_run import kalm, run_folder_of, write_config

NUM_UPDATES = 200
# What a clock measures differs between any two runs.
CLOCKS = ("seconds", "throughput", "per_second")


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of one run of 200 updates and of one that was stopped at 100 and resumed."""
    through, stopped = tmp_path_factory.mktemp("through"), tmp_path_factory.mktemp("stopped")
    assert kalm("fit", "--config", write_config(through), "--trainer.max_steps", str(NUM_UPDATES)) == 0
    config = write_config(stopped)
    assert kalm("fit", "--config", config, "--trainer.max_steps", str(NUM_UPDATES // 2)) == 0
    resume = ("--trainer.max_steps", str(NUM_UPDATES), "--ckpt_path", "last")
    assert kalm("fit", "--config", config, *resume) == 0
    return run_folder_of(through), run_folder_of(stopped)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Every place at which two nested structures of tensors and plain values differ."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys {one.keys() ^ other.keys()}"]
        return [d for key in one for d in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{where}: length"]
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{where}/{i}")]
    return [] if one == other else [f"{where}: {one!r} is not {other!r}"]


def test_resumed_run_equals_one_that_was_not_stopped(two_runs: tuple[Path, Path]) -> None:
    """Model, optimizer, loop counters and everything else that a checkpoint holds, to the bit."""
    through, stopped = (torch.load(folder / "last.ckpt", weights_only=True) for folder in two_runs)
    assert through["global_step"] == NUM_UPDATES
    assert len(through["optimizer_states"][0]["state"]) > 0
    assert differences(through, stopped) == []


def test_resumed_run_logs_the_same_metrics(two_runs: tuple[Path, Path]) -> None:
    """metrics.csv of both, row by row, without what a clock measures."""

    def rows(folder: Path) -> list[dict[str, str]]:
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        return [{k: v for k, v in row.items() if not any(clock in k for clock in CLOCKS)} for row in table]

    through, stopped = map(rows, two_runs)
    assert through == stopped
    assert {int(row["step"]) for row in through} == set(range(5, NUM_UPDATES + 1, 5))


def test_resumed_run_evaluates_the_same_episodes(two_runs: tuple[Path, Path]) -> None:
    """Every episode of every validation is in results.jsonl once, with the same outcome."""
    through, stopped = ((folder / "results.jsonl").read_text(encoding="utf-8") for folder in two_runs)
    assert through == stopped
    assert len(through.splitlines()) == NUM_UPDATES // 25 * 4 * 4  # validations x splits x episodes


def test_resume_leaves_the_first_config_and_numbers_its_own(two_runs: tuple[Path, Path]) -> None:
    """config.yaml says 100 updates still; the resumed run's configuration stands beside it."""
    _, stopped = two_runs
    assert "commit " in (stopped / "config.yaml").read_text(encoding="utf-8")
    assert "max_steps: 100" in (stopped / "config.yaml").read_text(encoding="utf-8")
    assert "max_steps: 200" in (stopped / "config-2.yaml").read_text(encoding="utf-8")


def test_resume_overlaps_no_step_in_tensorboard(two_runs: tuple[Path, Path]) -> None:
    """One point an update, in order, over the event files of both starts."""
    steps = []
    for folder in two_runs:
        events = EventAccumulator(str(folder))
        events.Reload()
        steps.append([event.step for event in events.Scalars("train/imitation_loss")])
    assert steps[0] == steps[1] == list(range(5, NUM_UPDATES + 1, 5))


def test_rows_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    """A run killed after its checkpoint logs the lost updates anew; nothing of the first attempt stays."""
    config = write_config(tmp_path)
    folder = run_folder_of(tmp_path)
    assert kalm("fit", "--config", config, "--trainer.max_steps", "50") == 0
    resumed = ("--ckpt_path", "update=30", "--trainer.max_steps", "60")
    assert kalm("fit", "--config", config, *resumed) == 0
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/imitation_loss"]]
    assert steps == list(range(5, 61, 5))


def test_resume_from_an_empty_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No silent fresh start; the message names the folder and what it holds."""
    config = write_config(tmp_path)
    assert kalm("fit", "--config", config, "--ckpt_path", "last") == 4
    folder = run_folder_of(tmp_path)
    assert f"folder {folder} does not exist" in capsys.readouterr().err
    folder.mkdir(parents=True)
    (folder / "notes.txt").touch()
    assert kalm("fit", "--config", config, "--ckpt_path", "last") == 4
    assert f"folder {folder} holds notes.txt" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt"]


def test_mistyped_checkpoint_is_refused_with_what_is_there(
    two_runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo in the name of a checkpoint starts nothing afresh."""
    root = two_runs[1].parents[3]
    assert kalm("fit", "--config", root / "bc.yaml", "--ckpt_path", str(two_runs[1] / "lst.ckpt")) == 4
    message = capsys.readouterr().err
    assert "lst.ckpt: no such checkpoint" in message
    assert "last.ckpt" in message


def test_fresh_start_over_a_finished_run_is_refused(
    two_runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A forgotten --ckpt_path costs nothing: neither the old run nor a night on a second one."""
    root = two_runs[1].parents[3]
    before = sorted(path.name for path in two_runs[1].iterdir())
    assert kalm("fit", "--config", root / "bc.yaml") == 4
    assert "--ckpt_path last" in capsys.readouterr().err
    assert sorted(path.name for path in two_runs[1].iterdir()) == before


def test_evaluation_touches_no_training_curve(tmp_path: Path) -> None:
    """Testing a run adds its episodes and leaves metrics.csv and the checkpoints as they were."""
    config = write_config(tmp_path)
    folder = run_folder_of(tmp_path)
    assert kalm("fit", "--config", config, "--trainer.max_steps", "25") == 0
    before = {name: (folder / name).read_bytes() for name in ("metrics.csv", "last.ckpt", "config.yaml")}
    assert kalm("test", "--config", config) == 0
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert '"stage": "test"' in (folder / "results.jsonl").read_text(encoding="utf-8")
    assert '"update": 25' in (folder / "results.jsonl").read_text(encoding="utf-8")
