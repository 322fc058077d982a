"""BabyAI's goals, each with its rule as a predicate on states: pick up, go to, open, put next to, go to a tile.

The rules are those of minigrid's own verifiers, said of states alone: an episode that begins with the goal unmet meets
it by the same step for both. A thing is gone to by facing it from the next tile; a description without a colour is
met by any colour.

Shape letters: ... any batch shape, W columns, H rows.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from kalm.core.errors import DataError
from kalm.core.goal import Array, BoolArray, Goal
from kalm.envs.babyai.layout import COLORS, KINDS, TILES, agent_of, code_of, codes_matching, in_front

MAX_STEPS = 500  # of an episode (TEDUO, section 5)


@dataclass(frozen=True)
class Thing:
    """A description of things: a kind and perhaps a colour."""

    kind: str
    color: str | None = None

    def __post_init__(self) -> None:
        """Check the names."""
        if self.kind not in KINDS:
            raise DataError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if self.color is not None and self.color not in COLORS:
            raise DataError(f"color is {self.color!r}; it must be None or one of {', '.join(COLORS)}")

    def __str__(self) -> str:
        """In BabyAI's words, such as ``red ball``."""
        return self.kind if self.color is None else f"{self.color} {self.kind}"

    @property
    def codes(self) -> Array:
        """Codes of the tiles that it describes."""
        return codes_matching(self.kind, self.color)


@dataclass(frozen=True)
class BabyAIGoal(Goal):
    """What all five share: a task by the kind of goal, and the things that they are about, in their order.

    Attributes:
        max_steps: Steps after which an episode is truncated; a goal is the same whatever the time it is given.
    """

    max_steps: int = field(default=MAX_STEPS, compare=False, repr=False, kw_only=True)
    task: ClassVar[str]

    @property
    def things(self) -> tuple[Thing, ...]:
        """The things that it names, none to two of them."""
        return tuple(value for value in vars(self).values() if isinstance(value, Thing))

    @abstractmethod
    def success(self, observation: Array, previous_observation: Any = None, action: Any = None) -> BoolArray:
        """Whether the goal holds in states (..., W, H, 2), whatever was done before, shape (...)."""

    def to_json(self) -> dict[str, Any]:  # noqa: D102
        return {"goal": self.task, **{name: _thing_to_json(getattr(self, name)) for name in _facts(type(self))}}

    def explained_by(self, text: str) -> bool:
        """Whether exactly its things are named, in their order."""
        words = re.findall(r"[a-z]+|\d+", text.lower())
        return [word for word in words if word in (*COLORS, *KINDS)] == " ".join(map(str, self.things)).split()


@dataclass(frozen=True)
class PickUp(BabyAIGoal):
    """Hold such a thing."""

    thing: Thing
    task: ClassVar[str] = "pick_up"

    def __post_init__(self) -> None:
        """Doors cannot be carried."""
        _refuse_door("thing", self.thing)

    def success(self, observation: Array, previous_observation: Any = None, action: Any = None) -> BoolArray:
        """Whether one is in the hand."""
        return np.isin(agent_of(observation)[3], self.thing.codes)


@dataclass(frozen=True)
class GoTo(BabyAIGoal):
    """Stand before such a thing, facing it."""

    thing: Thing
    task: ClassVar[str] = "go_to"

    def success(self, observation: Array, previous_observation: Any = None, action: Any = None) -> BoolArray:
        """Whether one is on the tile that the agent faces."""
        return np.isin(in_front(observation), self.thing.codes)


@dataclass(frozen=True)
class Open(BabyAIGoal):
    """Open such a door."""

    thing: Thing
    task: ClassVar[str] = "open"

    def __post_init__(self) -> None:
        """Only doors open."""
        if self.thing.kind != "door":
            raise DataError(f"thing is {str(self.thing)!r}; only a door can be opened")

    def success(self, observation: Array, previous_observation: Any = None, action: Any = None) -> BoolArray:
        """Whether any such door stands open."""
        colors = COLORS if self.thing.color is None else (self.thing.color,)
        opened = np.array([code_of("door", color, "open") for color in colors])
        return np.asarray(np.isin(observation[..., TILES], opened).any(axis=(-2, -1)))


@dataclass(frozen=True)
class PutNext(BabyAIGoal):
    """Put one thing on a tile beside another, neither of them in the hand; ``place`` may be a door."""

    thing: Thing
    place: Thing
    task: ClassVar[str] = "put_next"

    def __post_init__(self) -> None:
        """Doors cannot be put anywhere."""
        _refuse_door("thing", self.thing)

    def success(self, observation: Array, previous_observation: Any = None, action: Any = None) -> BoolArray:
        """Whether two such things are one step apart, across or down."""
        tiles = observation[..., TILES]
        one, other = np.isin(tiles, self.thing.codes), np.isin(tiles, self.place.codes)
        across = (one[..., 1:, :] & other[..., :-1, :]) | (one[..., :-1, :] & other[..., 1:, :])
        down = (one[..., 1:] & other[..., :-1]) | (one[..., :-1] & other[..., 1:])
        return np.asarray(across.any(axis=(-2, -1)) | down.any(axis=(-2, -1)))


@dataclass(frozen=True)
class GoToTile(BabyAIGoal):
    """Stand on a tile."""

    x: int
    y: int
    task: ClassVar[str] = "go_to_tile"

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not all(type(value) is int and 0 < value < 256 for value in (self.x, self.y)):
            raise DataError(f"(x, y) is {(self.x, self.y)!r}; a tile inside the grid has integers from 1 on")

    def success(self, observation: Array, previous_observation: Any = None, action: Any = None) -> BoolArray:
        """Whether the agent is there."""
        x, y, _, _ = agent_of(observation)
        return (x == self.x) & (y == self.y)

    def explained_by(self, text: str) -> bool:
        """Whether its two numbers are the ones named, in their order."""
        return re.findall(r"\d+", text) == [str(self.x), str(self.y)]


def goal_from_json(data: Mapping[str, Any], max_steps: int = MAX_STEPS) -> BabyAIGoal:
    """Rebuild a goal from its ``to_json`` form, which does not say how much time there is for it.

    Raises:
        DataError: If ``data`` describes no goal; the message names the field and what is allowed.
    """
    kind = data.get("goal") if isinstance(data, Mapping) else None
    if kind not in GOAL_CLASSES:
        raise DataError(f"a goal is {data!r}; its key 'goal' must be one of {', '.join(GOAL_CLASSES)}")
    goal_class = GOAL_CLASSES[kind]
    needed = _facts(goal_class)
    found = {name: value for name, value in data.items() if name != "goal"}
    if set(found) != set(needed):
        raise DataError(f"goal {kind!r} has the fields {sorted(found)}; it needs exactly {needed}")
    facts = {name: _thing_from_json(name, value) for name, value in found.items()}
    return goal_class(**facts, max_steps=max_steps)


def _facts(goal_class: type[BabyAIGoal]) -> list[str]:
    """Names of the fields that make a goal what it is."""
    return [field.name for field in fields(goal_class) if field.compare]


def _thing_to_json(value: Any) -> Any:
    return {"kind": value.kind, "color": value.color} if isinstance(value, Thing) else value


def _thing_from_json(name: str, value: Any) -> Any:
    if name in ("x", "y"):
        return value
    if not isinstance(value, Mapping) or set(value) != {"kind", "color"}:
        raise DataError(f"{name} is {value!r}; a thing is an object with the keys kind and color (null for any)")
    return Thing(**value)


def _refuse_door(field: str, thing: Thing) -> None:
    if thing.kind == "door":
        raise DataError(f"{field} is {str(thing)!r}; a door cannot be carried")


GOAL_CLASSES: dict[str, type[BabyAIGoal]] = {
    goal_class.task: goal_class for goal_class in (PickUp, GoTo, Open, PutNext, GoToTile)
}
