"""The goals of CLEVR-Robot: small frozen classes, each with one batched rule for success and one for reward.

An observation is the (x, y) of the red, blue, green, purple and cyan ball, seen from above: +x right, +y behind.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.goal import Array, BoolArray, FloatArray, Goal
from kalm.envs.clevr_robot.layout import COLORS, DIRECTIONS, NUM_BALLS, PUSH_DIRECTIONS

PLACE_DISTANCE = 0.39 + 0.001  # nearer than this counts as beside
ZERO_OFFSET = 1e-3  # offsets smaller than this count as exactly aligned
GATHER_DISTANCE = 0.325
ROW_HALF_ANGLE = np.pi / 6
MOVE_DISTANCE = 0.15  # how far a ball must have gone for the move to count, when only the states are known
SUCCESS_REWARD = 100.0  # of the step that meets the goal, in place of what it gained
PLACE_REWARD = 10.0  # a unit of distance gained
PLACE_OFFSET = 0.195  # from the target's centre to the point that a placement's reward leads to
SUB_GOAL_REWARD = 10.0  # a sub-goal gained

# Words that name each side; a text names a side if it holds any of them.
DIRECTION_WORDS = {
    "behind": {"behind", "back", "backward", "backwards", "rear"},
    "left": {"left", "leftward", "leftwards"},
    "front": {"front", "forward", "forwards"},
    "right": {"right", "rightward", "rightwards"},
}
_ROW_WORDS = {"row", "line"}
_GATHER_WORDS = {"around", "gather", "surround", "cluster", "huddle", "near", "close"}


class ClevrRobotGoal(Goal):
    """What the goals share: each has a ``kind`` in its JSON form and earns rewards on the way."""

    kind: ClassVar[str]  # the value of ``goal`` in the JSON form
    max_steps: ClassVar[int] = 50

    def reward(self, observation: Array, action: Array, next_observation: Array) -> FloatArray:
        """``SUCCESS_REWARD`` where the goal is met, else the ``progress``, shape (...)."""
        is_success = self.success(next_observation, observation, action)
        return np.where(is_success, SUCCESS_REWARD, self.progress(observation, next_observation))

    @abstractmethod
    def progress(self, observation: Array, next_observation: Array) -> FloatArray:
        """What a step is worth that does not meet the goal, shape (...), from observations of shape (..., 10)."""

    def to_json(self) -> dict[str, Any]:
        """The kind and the fields."""
        return {"goal": self.kind, **super().to_json()}


class _HardGoal(ClevrRobotGoal):
    """A goal of several sub-goals, each of which earns a reward."""

    @property
    def task(self) -> str:
        return self.kind

    @property
    def num_sub_goals(self) -> int:
        """How many sub-goals make it up; unless told otherwise, every ball must be where another asks for it."""
        return NUM_BALLS - 1

    @abstractmethod
    def sub_goals_met(self, observation: Array) -> NDArray[np.int64]:
        """How many sub-goals hold, shape (...)."""

    def success(self, observation: Array, previous_observation: Any = None, action: Any = None) -> BoolArray:
        return self.sub_goals_met(observation) == self.num_sub_goals

    def progress(self, observation: Array, next_observation: Array) -> FloatArray:
        """The change in the number of sub-goals that hold, shape (...), times ``SUB_GOAL_REWARD``."""
        return SUB_GOAL_REWARD * (self.sub_goals_met(next_observation) - self.sub_goals_met(observation))


@dataclass(frozen=True)
class PlaceGoal(ClevrRobotGoal):
    """Put the ``source`` ball at one side of the ``target`` ball, close to it: behind, left, front or right."""

    source: str
    target: str
    direction: str
    kind: ClassVar[str] = "place"

    def __post_init__(self) -> None:
        """Check the names."""
        _check_name("source", self.source, COLORS)
        _check_name("target", self.target, COLORS)
        _check_name("direction", self.direction, DIRECTIONS)
        if self.source == self.target:
            raise DataError(f"source and target are both {self.source!r}; they must be two different balls")

    @property
    def task(self) -> str:  # noqa: D102
        return f"place_{self.direction}"

    def success(self, observation: Array, previous_observation: Any = None, action: Any = None) -> BoolArray:
        """Whether the source lies within reach of the target, in the half-open quarter around the side."""
        offset = ball(observation, self.source) - ball(observation, self.target)
        near = np.hypot(offset[..., 0], offset[..., 1]) < PLACE_DISTANCE
        offset = np.where(np.abs(offset) < ZERO_OFFSET, 0.0, offset)
        # How far towards the side, and how far to the left of one who looks that way.
        across, along = DIRECTIONS[self.direction]
        ahead = offset[..., 0] * across + offset[..., 1] * along
        aside = offset[..., 1] * across - offset[..., 0] * along
        # [-45, 45) degrees: the clockwise border belongs to the quarter, the other to the next one.
        return near & (aside >= -ahead) & (aside < ahead)

    def progress(self, observation: Array, next_observation: Array) -> FloatArray:
        """Distance gained towards the place, shape (...), times ``PLACE_REWARD``.

        The place is the point ``PLACE_OFFSET`` from the target's centre at the goal's side, and moves with the target.
        KALM's authors' recorded rewards follow it; a ball cannot get there, for two centres are 0.26 apart at least.
        """
        return PLACE_REWARD * (self._distance(observation) - self._distance(next_observation))

    def explained_by(self, text: str) -> bool:
        """Whether the colours are named in their order and nothing else, and with them words of the one side."""
        _, colors, sides = _words(text)
        return colors == [self.source, self.target] and set(sides) == {self.direction}

    def _distance(self, observation: Array) -> FloatArray:
        place = ball(observation, self.target) + PLACE_OFFSET * np.array(DIRECTIONS[self.direction])
        offset = ball(observation, self.source) - place
        return np.hypot(offset[..., 0], offset[..., 1])


@dataclass(frozen=True)
class MoveGoal(ClevrRobotGoal):
    """Push one ball one step towards a side; judged after a single step.

    With the action known it is judged by the action: the right ball, and one of the three pushes with that component.
    Only without it do the states decide: the ball went ``MOVE_DISTANCE`` that way. From a third of random starts
    no push at all brings the ball so far, by walls and other balls, so the rule of states alone would be unfair.
    """

    ball: str
    direction: str
    kind: ClassVar[str] = "move"
    max_steps: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the names."""
        _check_name("ball", self.ball, COLORS)
        _check_name("direction", self.direction, DIRECTIONS)

    @property
    def task(self) -> str:  # noqa: D102
        return f"move_{self.direction}"

    @property
    def actions(self) -> NDArray[np.int64]:
        """The three actions that meet this goal."""
        pushes = np.flatnonzero(PUSH_DIRECTIONS @ np.array(DIRECTIONS[self.direction]) > 0)
        return COLORS.index(self.ball) * len(PUSH_DIRECTIONS) + pushes

    def success(self, observation: Array, previous_observation: Any = None, action: Any = None) -> BoolArray:
        """Whether the step was the right push or, with no action known, the ball went far enough that way."""
        if action is not None:
            return np.isin(np.asarray(action), self.actions)
        if previous_observation is None:
            return np.zeros(observation.shape[:-1], dtype=np.bool_)
        moved = ball(observation, self.ball) - ball(previous_observation, self.ball)
        return moved @ np.array(DIRECTIONS[self.direction]) >= MOVE_DISTANCE

    def progress(self, observation: Array, next_observation: Array) -> FloatArray:
        """Nothing, for a single step either meets the goal or does not, shape (...)."""
        return np.zeros(observation.shape[:-1])

    def explained_by(self, text: str) -> bool:
        """Whether the ball's colour is the only one named, and with it words of the one direction."""
        _, colors, sides = _words(text)
        return colors == [self.ball] and set(sides) == {self.direction}


@dataclass(frozen=True)
class RowGoal(_HardGoal):
    """All five balls from left to right in the order red, blue, green, purple, cyan."""

    kind: ClassVar[str] = "row"

    def sub_goals_met(self, observation: Array) -> NDArray[np.int64]:
        """How many balls lie to the right of the one before, within 30 degrees, shape (...), at most 4."""
        centers = observation.reshape(*observation.shape[:-1], NUM_BALLS, 2)
        step = np.diff(centers, axis=-2)
        return (np.abs(np.arctan2(step[..., 1], step[..., 0])) <= ROW_HALF_ANGLE).sum(axis=-1)

    def explained_by(self, text: str) -> bool:
        """Whether a word is there that is the row's alone."""
        return bool(_ROW_WORDS & set(_words(text)[0]))


@dataclass(frozen=True)
class GatherGoal(_HardGoal):
    """The other four balls close around the green one."""

    kind: ClassVar[str] = "gather"

    def sub_goals_met(self, observation: Array) -> NDArray[np.int64]:
        """How many of the other four are near the green ball, shape (...)."""
        centers = observation.reshape(*observation.shape[:-1], NUM_BALLS, 2)
        offset = centers - ball(observation, "green")[..., None, :]
        return (np.hypot(offset[..., 0], offset[..., 1]) < GATHER_DISTANCE).sum(axis=-1) - 1  # green is near itself

    def explained_by(self, text: str) -> bool:
        """Whether green is named, and with it a word that is the gathering's alone."""
        words, colors, _ = _words(text)
        return "green" in colors and bool(_GATHER_WORDS & set(words))


@dataclass(frozen=True)
class AllOf(_HardGoal):
    """Several placements at once, two or more."""

    goals: tuple[PlaceGoal, ...]
    kind: ClassVar[str] = "all_of"

    def __post_init__(self) -> None:
        """Take any sequence; check that there are enough goals and that they are placements."""
        object.__setattr__(self, "goals", tuple(self.goals))
        if len(self.goals) < 2 or not all(isinstance(goal, PlaceGoal) for goal in self.goals):
            raise DataError(f"goals is {self.goals!r}; all_of takes two placements or more")

    @property
    def task(self) -> str:  # noqa: D102
        return {2: "place_two", 3: "place_three"}.get(len(self.goals), f"place_{len(self.goals)}")

    def to_json(self) -> dict[str, Any]:  # noqa: D102
        return {"goal": self.kind, "goals": [goal.to_json() for goal in self.goals]}

    @property
    def num_sub_goals(self) -> int:
        """Each placement is one."""
        return len(self.goals)

    def sub_goals_met(self, observation: Array) -> NDArray[np.int64]:
        """How many of the placements hold, shape (...)."""
        return np.sum([goal.success(observation) for goal in self.goals], axis=0, dtype=np.int64)

    def explained_by(self, text: str) -> bool:
        """Whether the colours and the sides of all placements are named, in their order and nothing else."""
        _, colors, sides = _words(text)
        wanted = [color for goal in self.goals for color in (goal.source, goal.target)]
        return colors == wanted and sides == [goal.direction for goal in self.goals]


def ball(observation: Array, color: str) -> FloatArray:
    """The (x, y) of one ball, shape (..., 2), from observations, shape (..., 10)."""
    column = 2 * COLORS.index(color)
    return observation[..., column : column + 2]


def goal_from_json(data: Mapping[str, Any]) -> ClevrRobotGoal:
    """Rebuild a goal from its ``to_json`` form.

    Raises:
        DataError: If ``data`` describes no goal; the message names the field and what is allowed.
    """
    if not isinstance(data, Mapping) or "goal" not in data:
        raise DataError(f"a goal is {data!r}; it must be an object with the key 'goal', one of {', '.join(_CLASSES)}")
    kind = data["goal"]
    _check_name("goal", kind, _CLASSES)
    goal_class = _CLASSES[kind]
    needed = [field.name for field in fields(goal_class)]  # type: ignore[arg-type]  # all are dataclasses
    found = [name for name in data if name != "goal"]
    if set(found) != set(needed):
        raise DataError(f"goal {kind!r} has the fields {sorted(found)}; it needs exactly {needed}")
    if goal_class is AllOf:
        if not isinstance(data["goals"], list):
            raise DataError(f"goals is {data['goals']!r}; it must be a list of place goals")
        return AllOf(tuple(goal_from_json(part) for part in data["goals"]))  # type: ignore[misc]  # AllOf checks
    return goal_class(**{name: data[name] for name in needed})


def _check_name(field: str, value: object, known: Any) -> None:
    if not isinstance(value, str) or value not in known:
        raise DataError(f"{field} is {value!r}; it must be one of {', '.join(known)}")


def _words(text: str) -> tuple[list[str], list[str], list[str]]:
    """The words of a text; of them, in order, the colours, and the sides that they name."""
    words = re.findall(r"[a-z]+", text.lower())
    colors = [word for word in words if word in COLORS]
    return words, colors, [side for word in words for side, names in DIRECTION_WORDS.items() if word in names]


_CLASSES: dict[str, type[ClevrRobotGoal]] = {
    goal_class.kind: goal_class for goal_class in (PlaceGoal, MoveGoal, RowGoal, GatherGoal, AllOf)
}
