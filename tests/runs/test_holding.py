"""Two runs into one folder: the second is refused, naming the first; what a killed one left half written goes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from kalm.core.errors import CheckpointError
from kalm.runs.holding import folder_held
from tests.chain_run import briefly, kalm, run_folder_of, write_config


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    """Until it lets go; a lock that a killed process left is no lock, whatever it says."""
    (tmp_path / ".lock").write_text("half a li")
    first = f"process {os.getpid()} on {socket.gethostname()}"
    with folder_held(tmp_path), pytest.raises(CheckpointError, match=first), folder_held(tmp_path):
        pass
    with folder_held(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_second_fit_into_the_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 4, and the first one's files stay; afterwards the temporaries of killed runs are gone."""
    config, folder = write_config(tmp_path), run_folder_of(tmp_path)
    assert kalm("fit", "--config", config, *briefly(5)) == 0
    before = sorted(path.name for path in folder.iterdir())
    with folder_held(folder):
        (folder / ".update=10.ckpt.77.tmp").touch()
        for more in (("--ckpt_path", "last"), ("--overwrite", "true")):
            assert kalm("fit", "--config", config, *briefly(10), *more) == 4
            assert f"{folder} is being written by process {os.getpid()} on" in capsys.readouterr().err
    assert sorted({path.name for path in folder.iterdir()} - {".update=10.ckpt.77.tmp"}) == before
    assert kalm("fit", "--config", config, *briefly(10), "--ckpt_path", "last") == 0
    assert not list(folder.glob(".*.tmp"))
