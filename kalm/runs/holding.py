"""One process at a time writes a run: it holds the folder, and clears away what killed ones have left half written."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from kalm.core.errors import CheckpointError

_LOCK = ".lock"


@contextmanager
def folder_held(folder: Path) -> Iterator[None]:
    """Hold a run's folder; the system lets go of it when this process ends, however it ends.

    Raises:
        CheckpointError: If another process holds it; the message has its host and number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    lock = _locked(path)
    while lock is None:  # it was let go of, and its file removed, since it was opened
        lock = _locked(path)
    with lock:
        lock.truncate(0)
        lock.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
        lock.flush()
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> TextIO | None:
    """The lock file, held by this process; None if it is no longer the one of that name."""
    lock = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        said = lock.read()
        lock.close()
        raise CheckpointError(
            f"{path.parent} is being written by {_holder(said)}. Wait for it, end it, or choose another --experiment "
            "or --seed_everything"
        ) from error
    if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
        return lock
    lock.close()
    return None


def _holder(said: str) -> str:
    try:
        found = json.loads(said)
        return f"process {found['process']} on {found['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
