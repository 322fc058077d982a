"""A run that is told to end before its time is not a finished run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

from tests.chain_run import EXPERIMENT, write_config

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
