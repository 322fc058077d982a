"""A run that is told to end before its time is not a finished run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.chain_run import EXPERIMENT, kalm, run_folder_of, write_config
from tests.cli.test_devices import TWO, run_cli
from tests.cli.test_resume import differences

ROOT = Path(__file__).resolve().parents[2]


def _study(root: Path, config: str) -> Path:
    """One stage that trains the chain policy."""
    stage = {"name": "fit", "config": config}
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "root": str(root), "stages": [stage]}), encoding="utf-8")
    return path


def test_a_terminated_fit_does_not_count_as_finished(tmp_path: Path) -> None:
    """SIGTERM at update 60 of 100, after the checkpoint of update 30: exit 143, and the study's stage stays open."""
    terminate = {"class_path": "tests.cli.terminate.Terminate", "init_args": {"at_update": 60}}
    config = write_config(tmp_path, **{"trainer.callbacks": [terminate]})
    study = _study(tmp_path, config)
    done = subprocess.run(
        [sys.executable, "-m", "kalm", "run", str(study)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 143, done.stdout + done.stderr
    (marker,) = (tmp_path / "study" / "stages").glob("*.json")
    assert json.loads(marker.read_text(encoding="utf-8"))["is_finished"] is False
    assert (tmp_path / EXPERIMENT / "seed=3" / "last.ckpt").exists()


def _terminate(**options: int) -> dict[str, object]:
    return {"class_path": "tests.cli.terminate.Terminate", "init_args": options}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_fit_that_is_told_to_end_saves_that_update(tmp_path: Path, number: int, code: int) -> None:
    """Told behind update 45, five updates a step: it ends with a checkpoint of 50, and goes on as if it had not."""
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    for folder in (through, stopped):
        folder.mkdir()
    assert kalm("fit", "--config", write_config(through)) == 0
    success = {"class_path": "kalm.callbacks.success_rate.SuccessRate"}
    callbacks = [_terminate(at_update=45, number=int(number)), success]
    config, told = write_config(stopped), write_config(stopped, "told.yaml", **{"trainer.callbacks": callbacks})
    done = run_cli("fit", "--config", told)
    assert done.returncode == code, done.stdout + done.stderr
    assert (run_folder_of(stopped) / "last.ckpt").resolve().name == "update=50.ckpt"
    assert kalm("fit", "--config", config, "--ckpt_path", "last") == 0
    ends = [torch.load(run_folder_of(folder) / "last.ckpt", weights_only=True) for folder in (through, stopped)]
    for state in ends:
        state["callbacks"] = {key: value for key, value in state["callbacks"].items() if "Checkpoint" not in key}
    assert differences(*ends) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_two_devices_end_together_when_one_is_told(tmp_path: Path, rank: int) -> None:
    """One process alone hears of it behind update 45: both end behind 50, saved, and the first says 143."""
    config = write_config(tmp_path, **{"trainer.callbacks": [_terminate(at_update=45, rank=rank)]})
    done = run_cli("fit", "--config", config, *TWO, "--trainer.limit_val_batches", "0")
    assert done.returncode == 143, done.stdout + done.stderr
    assert (run_folder_of(tmp_path) / "last.ckpt").resolve().name == "update=50.ckpt"


def test_a_test_that_is_told_to_end_does_so_at_once(tmp_path: Path) -> None:
    """Nothing of it is kept, and nobody takes it for finished."""
    config = write_config(tmp_path, **{"trainer.max_steps": 5, "trainer.limit_val_batches": 0})
    assert kalm("fit", "--config", config) == 0
    callbacks = [_terminate(at_update=0), {"class_path": "kalm.callbacks.success_rate.SuccessRate"}]
    told = write_config(tmp_path, "told.yaml", **{"trainer.callbacks": callbacks})
    assert kalm("test", "--config", told) == 143
    assert not (run_folder_of(tmp_path) / "results.jsonl").exists()
