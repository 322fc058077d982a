"""How processes end: on SIGTERM, which schedulers send, as on Ctrl-C, with exit code 143; and with their parent."""

from __future__ import annotations

import multiprocessing
import os
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
    """Let SIGTERM raise ``Terminated``, wherever this process is; training looks for a better moment.

    Afterwards both signals are heard as before: whoever heard them meanwhile would keep all that it knows alive.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        for number, heard in before.items():
            signal.signal(number, heard)


def _end(number: int, frame: Any) -> NoReturn:
    raise Terminated


def end_with_parent() -> None:
    """Let this process, which another one began to help it, end when that one is gone: killed, it cannot say so."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
