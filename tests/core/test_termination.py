"""A process that is told to end closes what it has open; helpers of one that was killed do not stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kalm.core.termination import Terminated, ended_by_sigterm
from tests.two_devices import ROOT

# Two processes that have nothing to do, and the one that began them.
PROGRAM = """
import multiprocessing, sys, time
from kalm.core.termination import end_with_parent

def idle():
    end_with_parent()
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(600)

if __name__ == "__main__":
    for _ in range(2):
        multiprocessing.get_context("spawn").Process(target=idle).start()
    time.sleep(600)
"""


def test_sigterm_is_an_exit_with_its_code() -> None:
    """What is open is closed on the way; afterwards the signal means what it meant before."""
    before, closed = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            closed.append(True)

    with ended_by_sigterm(), pytest.raises(Terminated) as error:
        work()
    assert error.value.code == 143
    assert closed == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_whoever_hears_signals_meanwhile_is_let_go() -> None:
    """A handler that a run has put in place knows its trainer, and would keep it alive with all its data."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with ended_by_sigterm():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: None)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_helpers_end_with_the_process_that_began_them(tmp_path: Path) -> None:
    """SIGKILL gives it no time to end them; within seconds both are gone."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, program], env=environment, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        helpers = [int(process.stdout.readline()) for _ in range(2)]
        assert all(map(_is_running, helpers))
        process.kill()
    deadline = time.monotonic() + 30
    while any(map(_is_running, helpers)):
        assert time.monotonic() < deadline, "a helper is left"
        time.sleep(0.1)


def _is_running(pid: int) -> bool:
    """Whether a process is there, and not merely a number that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
