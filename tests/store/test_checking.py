"""What is in a store is looked at when it is opened, once: changed bytes, and numbers that nobody can learn from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kalm.core.durable import file_sha256
from kalm.core.errors import DataError
from kalm.store import checking
from kalm.store.checking import CHECKED
from kalm.store.reader import RolloutStore
from tests.chain_run import kalm, run_folder_of, write_config
from tests.data.rollouts import real_rollouts, write_store
from tests.line_domain import LineDomain


def put(store: Path, name: str, kind: str, place: int, value: Any, is_signed: bool = False) -> None:
    """Change one number of a file in place; if ``is_signed`` its new SHA-256 goes into the manifest."""
    column = np.memmap(store / name, dtype=kind, mode="r+")
    column[place] = value
    column.flush()
    if is_signed:
        manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
        manifest["files"][name]["sha256"] = file_sha256(store / name)
        (store / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


# File, type, place in it counted from the first number of rollout 3 (step 2 of it for transitions), value, message.
DAMAGES = {
    "observation": ("transitions/observation.memmap", "<f4", 2 * 5 + 4, np.nan, "nan in rollout 3, step 2, column 4"),
    "next observation": ("transitions/next/observation.memmap", "<f4", 2 * 5, np.inf, "inf in rollout 3, step 2"),
    "reward": ("transitions/next/reward.memmap", "<f4", 2, -np.inf, "-inf in rollout 3, step 2; every number"),
    "action": ("transitions/action.memmap", "<i8", 2, 9, "9 in rollout 3, step 2; allowed are integers in [0, 2)"),
    "source": ("transitions/source.memmap", "u1", 2, 77, "77 in rollout 3, step 2; its rollout says otherwise"),
    "step": ("transitions/step.memmap", "<i2", 2, 7, "7 in rollout 3, step 2; its rollout says otherwise"),
    "rollout": ("transitions/rollout_id.memmap", "<i4", 2, 4, "4 in rollout 3, step 2; its rollout says otherwise"),
    "end": ("transitions/next/terminated.memmap", "u1", 2, 2, "2 in rollout 3, step 2; allowed are true and false"),
    "source of a rollout": ("rollouts/source.memmap", "u1", 3, 77, "77 in rollout 3; allowed are 0, 1"),
    "length": ("rollouts/length.memmap", "<i4", 3, 0, "0 in rollout 3; a rollout has at least one step"),
    "start": ("rollouts/start.memmap", "<i8", 3, 0, "0 in rollout 3; rollouts must follow each other"),
    "sentence": ("rollouts/instruction_id.memmap", "<i4", 3, 99, "99 in rollout 3; allowed are rows of instructions"),
}


@pytest.mark.parametrize("is_signed", [False, True], ids=["changed", "signed"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_learned_from_is_named(tmp_path: Path, damage: str, is_signed: bool) -> None:
    """By file, rollout and step, whether or not the manifest knows of it."""
    name, kind, place, value, message = DAMAGES[damage]
    long = [rollout for rollout in real_rollouts(60) if len(rollout) == 3][:6]
    write_store(tmp_path / "store", long)
    per_row = 5 if "observation" in name else 1
    put(tmp_path / "store", name, kind, place + (9 * per_row if name.startswith("tr") else 0), value, is_signed)
    with pytest.raises(DataError) as error:
        RolloutStore(tmp_path / "store")
    assert f"{name}: {message}" in str(error.value)
    assert (f"{name}: its content changed since it was written" in str(error.value)) is not is_signed


@pytest.mark.parametrize("value", [np.nan, 1.5])
def test_continuous_actions_are_within_their_bounds(tmp_path: Path, value: float) -> None:
    """The first number of the first action."""
    domain = LineDomain()
    write_store(tmp_path / "store", list(domain.collect(5, seed=0)), domain=domain)
    put(tmp_path / "store", "transitions/action.memmap", "<f4", 0, value, is_signed=True)
    with pytest.raises(DataError, match=rf"{value} in rollout 0, step 0, column 0; allowed are numbers in \[-1, 1\]"):
        RolloutStore(tmp_path / "store")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content is read to be checked; a file may be noted as soon as it is written."""
    names: list[str] = []

    def remember(path: Path) -> str:
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(checking, "file_sha256", remember)
    monkeypatch.setattr(checking, "_CLOCK_GRAIN_SECONDS", 0.0)
    return names


def test_content_is_read_once(tmp_path: Path, read: list[str]) -> None:
    """When it is written; a copy is read again, and a file that changed, even if it says that it did not."""
    folder = tmp_path / "store"
    store = write_store(folder, real_rollouts(10))
    assert len(store.is_success) == 10
    assert set(store.manifest["files"]) <= {f"{path.relative_to(folder)}" for path in folder.rglob("*")}
    assert len(read) == len(store.manifest["files"]) + len(list((folder / "labels" / "domain_rule").glob("*.memmap")))
    read.clear()
    assert RolloutStore(folder).is_success.shape == (10,)
    assert read == []
    shutil.copytree(folder, tmp_path / "copy")
    RolloutStore(tmp_path / "copy")
    assert len(read) == len(store.manifest["files"])
    read.clear()
    before = (folder / "provenance.jsonl").stat()
    (folder / "provenance.jsonl").write_bytes(b"?" * before.st_size)
    os.utime(folder / "provenance.jsonl", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match="provenance.jsonl: its content changed"):
        RolloutStore(folder)
    assert read == ["provenance.jsonl"]


def test_a_folder_that_cannot_be_written_to_is_read_each_time(tmp_path: Path, read: list[str]) -> None:
    """Where the note would be lies a folder; that is no reason to refuse the store."""
    (tmp_path / "store" / CHECKED).mkdir(parents=True)
    store = write_store(tmp_path / "store", real_rollouts(10))
    read.clear()
    RolloutStore(tmp_path / "store")
    assert len(read) == len(store.manifest["files"])


def test_a_label_that_changed_in_place_is_named(tmp_path: Path) -> None:
    """As a store is."""
    write_store(tmp_path / "store", real_rollouts(10))
    name = "labels/domain_rule/met.memmap"
    put(tmp_path / "store", name, "u1", 0, 1 - np.memmap(tmp_path / "store" / name, dtype="u1", mode="r")[0])
    with pytest.raises(DataError, match="met.memmap: its content changed"):
        _ = RolloutStore(tmp_path / "store").is_success


@pytest.mark.parametrize("name", ["real", "imagined"])
def test_training_refuses_and_a_resume_notices(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """BC reads no reward; a reward that is no number stops it all the same, afresh and when it goes on."""
    config = write_config(tmp_path, **{"trainer.limit_val_batches": 0})
    assert kalm("fit", "--config", config, "--trainer.max_steps", "50") == 0
    put(tmp_path / name, "transitions/next/reward.memmap", "<f4", 0, np.nan)
    for arguments in (("--ckpt_path", "last"), ("--experiment", "chain/bc/new")):
        capsys.readouterr()
        assert kalm("fit", "--config", config, *arguments) == 3
        message = capsys.readouterr().err
        assert f"rollout store {tmp_path / name} is damaged" in message
        assert "transitions/next/reward.memmap: nan in rollout 0, step 0; every number must be finite" in message
    assert (run_folder_of(tmp_path) / "last.ckpt").resolve().name == "update=50.ckpt"
