"""The goals of Meta-World: one a task. Where things lie, and where they shall go, is in the observation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kalm.core.errors import DataError
from kalm.core.goal import Array, BoolArray, FloatArray, Goal
from kalm.envs.metaworld.potential import POTENTIALS
from kalm.envs.metaworld.success import SUCCESS
from kalm.envs.metaworld.tasks import TASKS, name_problem

HORIZON = 100  # steps, as in the paper
SUCCESS_REWARD = 10.0  # on top of the change of the potential, as in the paper


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PUCK = _words("puck disc cylinder")
_WALL = _words("wall walls")
_BUTTON = _words("button buttons knob switch")
_DOOR = _words("door doors safe")
_LOCK = _words("lock locks locked unlock unlocks unlocked bolt unbolt latch unlatch lever locking unlocking")
_COFFEE = _words("coffee machine spout espresso brewer maker")
_MUG = _words("mug mugs cup cups")
_WINDOW = _words("window windows pane sash")
_FAUCET = _words("faucet faucets tap spigot")
_NAIL = _words("nail nails")
_BALL = _words("ball balls football soccer")
_ARM = _words("reach gripper hand arm fingers fingertips robot")
_GOAL = _words("target goal point spot location position mark marked marker")
_PUSH = _words("push pushing slide sliding shove move steer nudge scoot glide drag propel")
_LIFT = _words("pick lift grasp grab grip carry raise take hold hoist air elevate")
_OPEN = _words("open opened opening opens")
_CLOSE = _words("close closed closing closes shut")
_UNDO = _words("unlock unlocks unlocked unlocking undo undone release loosen free unbolt unlatch")
_SERVE = _words("make brew fill serve prepare")
_START = _words("button start switch run")
_THINGS = _PUCK | _WALL | _BUTTON | _DOOR | _COFFEE | _MUG | _WINDOW | _FAUCET | _NAIL | _BALL | _words("hammer")


class KeyWords(NamedTuple):
    """What gives a task away: groups of words of each of which one must occur, and words that make it another task."""

    needed: tuple[frozenset[str], ...]
    forbidden: frozenset[str] = frozenset()


KEY_WORDS: dict[str, KeyWords] = {
    "reach": KeyWords((_ARM, _GOAL), _THINGS),
    "push": KeyWords((_PUCK, _PUSH), _LIFT | _WALL),
    "pick-place": KeyWords((_PUCK, _LIFT), _WALL),
    "button-press": KeyWords((_BUTTON,), _WALL | _COFFEE | _MUG),
    "door-unlock": KeyWords((_LOCK, _UNDO), _OPEN),
    "door-open": KeyWords((_DOOR, _OPEN), _LOCK | _CLOSE),
    "window-open": KeyWords((_WINDOW, _OPEN), _CLOSE),
    "faucet-open": KeyWords((_FAUCET, _OPEN | {"on"}), _CLOSE | {"off"}),
    "coffee-push": KeyWords((_MUG, _COFFEE), _SERVE | _START),
    "coffee-button": KeyWords((_BUTTON, _COFFEE), _MUG | _SERVE),
    "reach-wall": KeyWords((_WALL, _GOAL), _PUCK | _BUTTON),
    "push-wall": KeyWords((_PUCK, _WALL, _PUSH), _LIFT),
    "pick-place-wall": KeyWords((_PUCK, _WALL, _LIFT)),
    "button-press-wall": KeyWords((_BUTTON, _WALL)),
    "door-lock": KeyWords((_DOOR, _LOCK), _UNDO | _OPEN),
    "door-close": KeyWords((_DOOR, _CLOSE), _LOCK),
    "window-close": KeyWords((_WINDOW, _CLOSE)),
    "faucet-close": KeyWords((_FAUCET, _CLOSE | {"off"})),
    "make-coffee": KeyWords((_COFFEE, _SERVE | _MUG, _SERVE | _START)),
    "locked-door-open": KeyWords((_LOCK, _OPEN)),
    "hammer": KeyWords((_NAIL,)),
    "soccer": KeyWords((_BALL, _words("goal net score"))),
}


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
        if problem := name_problem(self.task):
            raise DataError(problem)

    def success(
        self, observation: Array, previous_observation: Array | None = None, action: Array | None = None
    ) -> BoolArray:
        """Whether the task is done, from the observation after the step alone, shape (...)."""
        return SUCCESS[self.task](observation)

    def reward(self, observation: Array, action: Array, next_observation: Array) -> FloatArray:
        """Change of the task's potential, plus ``SUCCESS_REWARD`` where the task is done afterwards, shape (...)."""
        potential, is_success = POTENTIALS[self.task], self.success(next_observation)
        return potential(next_observation) - potential(observation) + SUCCESS_REWARD * is_success

    def distance(self, observation: Array) -> FloatArray:
        """What the potential lacks, shape (...)."""
        return -POTENTIALS[self.task](observation)

    def explained_by(self, text: str) -> bool:
        """Whether the thing and what is done to it are named, and nothing that makes it another task."""
        words, (needed, forbidden) = set(re.findall(r"[a-z]+", text.lower())), KEY_WORDS[self.task]
        return all(words & group for group in needed) and not words & forbidden

    def to_json(self) -> dict[str, Any]:
        """The kind of goal, of which there is one, and the task."""
        return {"goal": "task", "task": self.task}


def goal_from_json(data: Mapping[str, Any] | str, max_steps: int = HORIZON) -> TaskGoal:
    """Rebuild a goal from its ``to_json`` form, or from its task's name, here or in the package (``-v3``).

    Raises:
        DataError: If ``data`` describes no goal; the message says what is allowed, for a v2 name the v3 one.
    """
    if isinstance(data, str):
        data = {"goal": "task", "task": data}
    if not isinstance(data, Mapping) or set(data) != {"goal", "task"} or data["goal"] != "task":
        raise DataError(f'a goal is {data!r}; it must be an object like {{"goal": "task", "task": "reach"}}')
    of_scene = {task.scene: task.name for task in TASKS.values()}
    name = data["task"]
    return TaskGoal(of_scene.get(name, name) if isinstance(name, str) else name, max_steps)
