"""The goals of Meta-World: one a task. Where things lie, and where they shall go, is in the observation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kalm.core.errors import DataError
from kalm.core.goal import Array, BoolArray, FloatArray, Goal
from kalm.envs.metaworld.key_words import KEY_WORDS
from kalm.envs.metaworld.potential import POTENTIALS
from kalm.envs.metaworld.success import SUCCESS
from kalm.envs.metaworld.tasks import TASKS, Task, name_problem

HORIZON = 100  # steps, as in the paper
SUCCESS_REWARD = 10.0  # on top of the change of the potential, as in the paper


@dataclass(frozen=True)
class TaskGoal(Goal):
    """Do a task.

    Attributes:
        task: Name of the task, a key of ``TASKS``.
        max_steps: Steps after which an episode is truncated; a goal is the same whatever the time it is given.
    """

    task: str
    max_steps: int = field(default=HORIZON, compare=False)

    def __post_init__(self) -> None:
        """Check the name."""
        problem = name_problem(self.task)
        if problem:
            raise DataError(problem)

    @property
    def definition(self) -> Task:
        """What the table says about the task."""
        return TASKS[self.task]

    def success(
        self, observation: Array, previous_observation: Array | None = None, action: Array | None = None
    ) -> BoolArray:
        """Whether the task is done, from the observation after the step alone, shape (...)."""
        return SUCCESS[self.task](observation)

    def reward(self, observation: Array, action: Array, next_observation: Array) -> FloatArray:
        """Change of the task's potential, plus ``SUCCESS_REWARD`` where the task is done afterwards, shape (...)."""
        potential, is_success = POTENTIALS[self.task], self.success(next_observation)
        return potential(next_observation) - potential(observation) + SUCCESS_REWARD * is_success

    def explained_by(self, text: str) -> bool:
        """Whether the thing and what is done to it are named, and nothing that makes it another task."""
        return KEY_WORDS[self.task].describe(set(re.findall(r"[a-z]+", text.lower())))

    def to_json(self) -> dict[str, Any]:
        """The kind of goal, of which there is one, and the task."""
        return {"goal": "task", "task": self.task}


def goal_from_json(data: Mapping[str, Any] | str, max_steps: int = HORIZON) -> TaskGoal:
    """Rebuild a goal from its ``to_json`` form, or from its task's name, here or in the package (``-v3``).

    Raises:
        DataError: If ``data`` describes no goal; the message names the field and what is allowed, for a v2 name the v3
            one.
    """
    if isinstance(data, str):
        data = {"goal": "task", "task": data}
    if not isinstance(data, Mapping) or set(data) != {"goal", "task"} or data["goal"] != "task":
        raise DataError(f'a goal is {data!r}; it must be an object like {{"goal": "task", "task": "reach"}}')
    of_scene = {task.scene: task.name for task in TASKS.values()}
    name = data["task"]
    return TaskGoal(of_scene.get(name, name) if isinstance(name, str) else name, max_steps)
