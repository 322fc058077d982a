"""Scenes that are built once in a process and lent out: to one thread at a time, to any number of episodes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kalm.envs.metaworld.scene import Scene
from kalm.envs.metaworld.tasks import TASKS

_idle: dict[str, list[Scene]] = {}
_lock = threading.Lock()


@contextmanager
def borrowed_scene(task: str) -> Iterator[Scene]:
    """A scene of a task that nobody else uses meanwhile; built if all are lent out."""
    with _lock:
        waiting = _idle.setdefault(task, [])
        scene = waiting.pop() if waiting else None
    if scene is None:
        scene = Scene(TASKS[task])
    try:
        yield scene
    finally:
        with _lock:
            _idle[task].append(scene)
