"""SIGTERM, which schedulers send, ends a process as Ctrl-C does: what is open is closed, and the exit code is 143."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class Terminated(SystemExit):
    """The process was told to end, and does."""

    def __init__(self) -> None:
        """With the exit code that shells give a process that SIGTERM ended."""
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise ``Terminated``, wherever this process is; training looks for a better moment."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: Any) -> NoReturn:
    raise Terminated
