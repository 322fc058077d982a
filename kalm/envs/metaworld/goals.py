"""The goals of Meta-World: one a task. Where things lie, and where they shall go, is in the observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kalm.core.errors import DataError
from kalm.envs.metaworld.tasks import TASKS, Task, name_problem


@dataclass(frozen=True)
class TaskGoal:
    """Do a task.

    Attributes:
        task: Name of the task, a key of ``TASKS``.
    """

    task: str

    def __post_init__(self) -> None:
        """Check the name."""
        problem = name_problem(self.task)
        if problem:
            raise DataError(problem)

    @property
    def definition(self) -> Task:
        """What the table says about the task."""
        return TASKS[self.task]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types from which ``goal_from_json`` rebuilds this goal."""
        return {"goal": "task", "task": self.task}


def goal_from_json(data: Mapping[str, Any]) -> TaskGoal:
    """Rebuild a goal from its ``to_json`` form; a task's name may carry the suffix of its scene, ``-v3``.

    Raises:
        DataError: If ``data`` describes no goal; the message names the field and what is allowed.
    """
    if not isinstance(data, Mapping) or set(data) != {"goal", "task"} or data["goal"] != "task":
        raise DataError(f'a goal is {data!r}; it must be an object like {{"goal": "task", "task": "reach"}}')
    return goal_of_task(data["task"])


def goal_of_task(name: object) -> TaskGoal:
    """The goal of a task, by its name here or by the package's v3 name.

    Raises:
        DataError: If there is no such task; for a v2 name the message gives the v3 one.
    """
    of_scene = {task.scene: task.name for task in TASKS.values()}
    return TaskGoal(of_scene.get(name, name) if isinstance(name, str) else name)  # type: ignore[arg-type]  # it checks
