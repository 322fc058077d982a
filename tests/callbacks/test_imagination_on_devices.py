"""Imagination on several devices: real processes, one store, the same bytes as one process makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kalm.callbacks.rollout_writer import RolloutWriter
from kalm.runs.folder import STORE
from kalm.store.reader import RolloutStore, is_finished_store
from tests.imagine_run import imagine, work

ROOT = Path(__file__).resolve().parents[2]


def run_two(folder: Path, num_easy: int, *killed_after: str) -> subprocess.CompletedProcess[str]:
    """Imagine on two devices, in processes of their own."""
    command = [sys.executable, "-m", "tests.imagine_run", str(folder), "2", str(num_easy), *killed_after]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def content(folder: Path) -> dict[str, bytes]:
    """Every file that was written."""
    run = folder / "run"
    files = (path for path in run.rglob("[!.]*") if path.is_file())  # what was looked at is noted with times
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def test_two_processes_one_of_them_killed_make_what_one_makes(tmp_path: Path) -> None:
    """Seven shards, of which the second device is to make three: killed after its first, both go on at the restart."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "run").mkdir(parents=True)
    shards = [shard.name for shard in work(two, 18).all_shards]
    imagine(one, 1, 18)
    killed = run_two(two, 18, shards[1])
    assert killed.returncode != 0
    assert not is_finished_store(two / "run" / STORE)
    stored = {path.stem for path in (two / "run" / STORE / "shards").glob("*.safetensors")}
    assert shards[1] in stored
    assert not stored & {shards[3], shards[5]}  # the rest of the second device's hand
    restarted = run_two(two, 18)
    assert restarted.returncode == 0, restarted.stderr
    assert RolloutStore(two / "run" / STORE, verify=True).num_rollouts == 7 + 18
    assert content(two) == content(one)


@pytest.mark.slow
def test_a_device_without_work_waits_for_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three shards one is left, as after a kill: the second device gets none, and the store is sealed."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "run").mkdir(parents=True)
    imagine(one, 1, 4)
    with monkeypatch.context() as only_here:
        only_here.setattr(RolloutWriter, "teardown", lambda *trainer, stage: None)  # killed before sealing
        imagine(two, 1, 4)
    max((two / "run" / STORE / "shards").glob("*.safetensors")).unlink()
    restarted = run_two(two, 4)
    assert restarted.returncode == 0, restarted.stderr
    assert content(two) == content(one)
