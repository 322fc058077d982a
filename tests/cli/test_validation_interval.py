"""Validations are so many updates apart, one that a run was killed in is made up, and nobody computes for nobody."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kalm.cli.validation_interval import interval_in_batches
from kalm.core.errors import KalmError
from tests.chain_run import kalm, run_folder_of, write_config
from tests.two_devices import ROOT

SUCCESS = {"class_path": "kalm.callbacks.success_rate.SuccessRate"}


def test_an_interval_counts_updates() -> None:
    """100 updates are 20 batches of five updates; or 400 batches of which an update accumulates four."""
    assert interval_in_batches({"val_check_interval": 100, "max_steps": 100}, 5) == 20
    assert interval_in_batches({"val_check_interval": 100, "max_steps": -1, "accumulate_grad_batches": 4}, 1) == 400
    assert interval_in_batches({"val_check_interval": 1.0, "max_steps": 10}, 5) == 1.0
    assert interval_in_batches({"val_check_interval": 99, "max_steps": 10, "limit_val_batches": 0}, 5) == 99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_check_interval": 105, "max_steps": 100}, "max_steps is 100: no validation would ever come. Give 100"),
        ({"val_check_interval": 12, "max_steps": 100}, "no multiple of data.updates_per_step 5; give 15"),
        ({"val_check_interval": 0.5, "max_steps": 100}, "val_check_interval is 0.5; so many updates"),
        ({"val_check_interval": 0, "max_steps": 100}, "val_check_interval is 0; so many updates"),
        ({"val_check_interval": 5, "check_val_every_n_epoch": 2}, "check_val_every_n_epoch is 2"),
    ],
)
def test_an_interval_that_can_never_fire_is_refused(options: dict[str, Any], message: str) -> None:
    """Before anything is learned; the message says what to give."""
    with pytest.raises(KalmError) as error:
        interval_in_batches(options, 5)
    assert message in str(error.value)


def test_the_command_line_refuses_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five updates a step, as the data module says."""
    assert kalm("fit", "--config", write_config(tmp_path), "--trainer.val_check_interval", "12") == 2
    assert "no multiple of data.updates_per_step 5; give 15" in capsys.readouterr().err
    assert not (run_folder_of(tmp_path) / "last.ckpt").exists()


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_a_verb_that_would_keep_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """A second file whose list of callbacks replaces the first one's; its others are named."""
    config = write_config(tmp_path, **{"trainer.max_steps": 5, "trainer.limit_val_batches": 0})
    assert kalm("fit", "--config", config) == 0
    other = tmp_path / "other.yaml"
    callbacks = [{"class_path": "kalm.callbacks.throughput.Throughput"}]
    other.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}), encoding="utf-8")
    capsys.readouterr()
    assert kalm(verb, "--config", config, "--config", other) == 2
    message = capsys.readouterr().err
    assert f"{verb} would compute and keep nothing" in message
    assert "Throughput" in message
    assert "trainer.callbacks+: kalm.callbacks.success_rate.SuccessRate" in message


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [
            {key: value for key, value in row.items() if key.startswith(("eval", "step"))}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("at_update", [50, 100])
def test_a_validation_that_a_run_was_killed_in_is_made_up(tmp_path: Path, at_update: int) -> None:
    """Killed in the validation of a checkpoint's update, in the midst of training or at its end: nothing is missing."""
    through, killed = tmp_path / "through", tmp_path / "killed"
    for folder in (through, killed):
        folder.mkdir()
    often = {"checkpoint.every_n_updates": 50}
    assert kalm("fit", "--config", write_config(through, **often)) == 0
    kill = {"class_path": "tests.cli.terminate.KilledInValidation", "init_args": {"at_update": at_update}}
    told = write_config(killed, "told.yaml", **often, **{"trainer.callbacks": [SUCCESS, kill]})
    command = [sys.executable, "-m", "kalm", "fit", "--config", told]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == -9
    folder = run_folder_of(killed)
    assert (folder / "last.ckpt").resolve().name == f"update={at_update}.ckpt"
    assert json.loads((folder / "validated.json").read_text())["update"] == at_update - 25
    assert kalm("fit", "--config", write_config(killed, **often), "--ckpt_path", "last") == 0
    expected = (run_folder_of(through) / "results.jsonl").read_text(encoding="utf-8")
    assert (folder / "results.jsonl").read_text(encoding="utf-8") == expected
    evaluated = [
        [row for row in _rows(one) if row["eval/train/success_rate"]] for one in (run_folder_of(through), folder)
    ]
    assert evaluated[0] == evaluated[1]
    assert [int(row["step"]) for row in evaluated[0]] == [25, 50, 75, 100]


def test_a_resume_repeats_no_validation_that_was_made(tmp_path: Path) -> None:
    """The lines of update 50 stay where they are; one that begins at an earlier checkpoint validates again."""
    config = write_config(tmp_path, **{"checkpoint.every_n_updates": 25, "checkpoint.num_kept": 4})
    assert kalm("fit", "--config", config, "--trainer.max_steps", "75") == 0
    rows = _rows(run_folder_of(tmp_path))
    assert kalm("fit", "--config", config, "--ckpt_path", "last", "--trainer.max_steps", "75") == 0
    assert _rows(run_folder_of(tmp_path)) == rows
    assert kalm("fit", "--config", config, "--ckpt_path", "update=25", "--trainer.max_steps", "75") == 0
    assert _rows(run_folder_of(tmp_path)) == rows
