"""What an observation and an action are, as data: store, validation, networks and environments all read it here.

An observation is a vector, a grid (small integers, perhaps with a few numbers beside it) or a text; an action is one of
a number of choices, a vector, or a text out of those available in a state. Whoever can read only some kinds asks for
what only they have (``observation_size``, ``is_discrete``) when it is constructed, and is refused there with a message.

Shape letters: O numbers in an observation, K numbers beside a grid, A numbers in a continuous action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

import gymnasium as gym
import numpy as np

from kalm.core.errors import DataError

# Parts of a grid observation with numbers beside it, in a Gymnasium space and in the array that holds it.
GRID = "grid"
NUMBERS = "numbers"


@dataclass(frozen=True)
class VectorObservation:
    """Numbers.

    Attributes:
        size: How many, O.
        entities: First and one past the last number of each thing that a scene may lack; they are then all zero.
        things: First and one past the last number of each thing that there is, whether a scene may lack it or not.
    """

    size: int
    entities: tuple[tuple[int, int], ...] = ()
    things: tuple[tuple[int, int], ...] = ()
    kind: str = field(default="vector", init=False)


@dataclass(frozen=True)
class GridObservation:
    """Small integers on a grid, and a few more numbers that belong to no place on it.

    In memory an observation without further numbers is an integer array of ``shape``; one with numbers is a structured
    scalar of ``dtype``: ``observation["grid"]`` and ``observation["numbers"]``, at any time or batch shape.

    Attributes:
        shape: Shape of the grid, channels last.
        num_numbers: Numbers beside it, K.
        is_wide: Whether its integers need 16 bits, in [-32768, 32767], rather than 8, in [0, 255].
    """

    shape: tuple[int, ...]
    num_numbers: int = 0
    is_wide: bool = False
    kind: str = field(default="grid", init=False)

    @property
    def grid_dtype(self) -> np.dtype[Any]:
        """Type of one integer of the grid."""
        return np.dtype("<i2" if self.is_wide else "u1")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one whole observation; its bytes are what a store keeps."""
        fields: list[Any] = [(GRID, self.grid_dtype, self.shape)]
        return np.dtype([*fields, (NUMBERS, "<f4", (self.num_numbers,))] if self.num_numbers else fields)


@dataclass(frozen=True)
class TextObservation:
    """A text of any length."""

    kind: str = field(default="text", init=False)


@dataclass(frozen=True)
class DiscreteAction:
    """One of ``size`` choices, as an index in [0, size)."""

    size: int
    kind: str = field(default="discrete", init=False)


@dataclass(frozen=True)
class VectorAction:
    """Numbers within bounds: the least and the greatest value of each of A."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    kind: str = field(default="vector", init=False)

    @property
    def size(self) -> int:
        """How many numbers, A."""
        return len(self.low)


@dataclass(frozen=True)
class TextAction:
    """A text out of those that are available in a state."""

    kind: str = field(default="text", init=False)


Observation = VectorObservation | GridObservation | TextObservation
Action = DiscreteAction | VectorAction | TextAction


@dataclass(frozen=True)
class Spec:
    """What every learner needs to know before it sees data; derived from a domain and a sentence encoder.

    Attributes:
        observation: What an observation is.
        action: What an action is.
        goal_embedding_size: Numbers in the sentence embedding of an instruction, E; 0 for what knows no goals.
        num_goal_tokens: Tokens of which those are the vectors, one after the other, zeros behind the last; 0 if they
            are one vector of the whole sentence.
    """

    observation: Observation
    action: Action
    goal_embedding_size: int = 0
    num_goal_tokens: int = 0

    def with_goals(self, goal_embedding_size: int, num_goal_tokens: int = 0) -> Spec:
        """The same for a learner of instructions whose sentence embeddings have so many numbers, of so many tokens."""
        return replace(self, goal_embedding_size=goal_embedding_size, num_goal_tokens=num_goal_tokens)

    # Where the next ones make no sense they raise a DataError, which names the kind that there is.

    @property
    def observation_size(self) -> int:
        """Numbers in one observation, O."""
        return self._vector.size

    @property
    def entities(self) -> tuple[tuple[int, int], ...]:
        """First and one past the last number of each thing that a scene may lack."""
        return self._vector.entities

    @property
    def things(self) -> tuple[tuple[int, int], ...]:
        """First and one past the last number of each thing that there is."""
        return self._vector.things

    @property
    def action_size(self) -> int:
        """Number of discrete actions, or numbers in one continuous action, A."""
        return self._numeric_action.size

    @property
    def is_discrete(self) -> bool:
        """Whether an action is an index in [0, A) rather than a vector."""
        return isinstance(self._numeric_action, DiscreteAction)

    @property
    def _vector(self) -> VectorObservation:
        if not isinstance(self.observation, VectorObservation):
            raise DataError(
                f"observations are of the kind {self.observation.kind} ({self.observation}), but this reads vectors; "
                "use what reads that kind, or a world of vectors"
            )
        return self.observation

    @property
    def _numeric_action(self) -> DiscreteAction | VectorAction:
        if isinstance(self.action, TextAction):
            raise DataError("actions are texts, but this reads discrete or vector actions; use what reads texts")
        return self.action

    def facts(self) -> dict[str, Any]:
        """All of it in plain types: what the checkpoint of whatever was built for it must agree with.

        What only readers of tokens need is left out where there are none, so that it may change.
        """
        facts = asdict(self)
        if not self.num_goal_tokens:
            facts["observation"].pop("things", None)
            del facts["num_goal_tokens"]
        return facts

    def to_json(self) -> dict[str, Any]:
        """Observation and action in plain JSON types, for a manifest; the rest are no facts of data."""
        observation = asdict(self.observation)
        for parts in ("entities", "things"):
            observation.pop(parts, None)
        return {"observation": observation, "action": asdict(self.action)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Spec:
        """The spec that ``to_json`` described.

        Raises:
            DataError: If it describes none; the message says what is allowed.
        """
        return Spec(_of_kind("observation", data, Observation), _of_kind("action", data, Action))


def vector_spec(
    observation_size: int,
    action_size: int,
    is_discrete: bool,
    goal_embedding_size: int = 0,
    things: Sequence[tuple[int, int]] = (),
) -> Spec:
    """The spec of a world of vectors, whose continuous actions are in [-1, 1]^A."""
    bounds = (-1.0,) * action_size, (1.0,) * action_size
    action = DiscreteAction(action_size) if is_discrete else VectorAction(*bounds)
    return Spec(VectorObservation(observation_size, things=tuple(things)), action, goal_embedding_size)


def spec_of_spaces(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    entities: Sequence[slice] = (),
    things: Sequence[slice] = (),
) -> Spec:
    """What Gymnasium's spaces describe.

    Args:
        observation_space: A box of floats of shape (O,); a box of integers of any shape; a dictionary of the latter,
            ``grid``, and of a box of shape (K,), ``numbers``; or a text.
        action_space: ``Discrete(A)``, a box of shape (A,), or a text.
        entities: Where in a vector observation the numbers of each thing lie that a scene may lack.
        things: Where those of each thing lie that there is.

    Raises:
        DataError: If a space is none of these.
    """
    observation = _observation_of(observation_space)
    if isinstance(observation, VectorObservation):
        ends = [tuple((part.start, part.stop) for part in parts) for parts in (entities, things)]
        observation = replace(observation, entities=ends[0], things=ends[1])
    return Spec(observation, _action_of(action_space))


def _observation_of(space: gym.Space[Any]) -> Observation:
    if isinstance(space, gym.spaces.Text):
        return TextObservation()
    if isinstance(space, gym.spaces.Box) and space.dtype.kind == "f" and len(space.shape) == 1:
        return VectorObservation(space.shape[0])
    grid, num_numbers = space, 0
    if isinstance(space, gym.spaces.Dict) and set(space.spaces) == {GRID, NUMBERS}:
        numbers = space[NUMBERS]
        if isinstance(numbers, gym.spaces.Box) and len(numbers.shape) == 1 and numbers.shape[0]:
            grid, num_numbers = space[GRID], numbers.shape[0]
    if isinstance(grid, gym.spaces.Box) and grid.dtype.kind in "iu":
        low, high = int(grid.low.min()), int(grid.high.max())
        if low >= -(2**15) and high < 2**15:
            return GridObservation(grid.shape, num_numbers, is_wide=low < 0 or high > 255)
    raise DataError(
        f"observation space {space} is neither a float box of shape (O,), nor a box of integers of 16 bits, nor "
        f"a dictionary of such a {GRID!r} and a box {NUMBERS!r} of shape (K,), nor a text; flatten the observation"
    )


def _action_of(space: gym.Space[Any]) -> Action:
    if isinstance(space, gym.spaces.Text):
        return TextAction()
    if isinstance(space, gym.spaces.Discrete) and space.start == 0:
        return DiscreteAction(int(space.n))
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        low, high = (np.broadcast_to(bound, space.shape) for bound in (space.low, space.high))
        if not np.isfinite([low, high]).all():
            raise DataError(f"action space {space} has no finite bounds; scale actions into [-1, 1]")
        return VectorAction(tuple(low.tolist()), tuple(high.tolist()))
    raise DataError(f"action space {space} is neither Discrete(A) from 0, nor a box of shape (A,), nor a text")


def _of_kind(what: str, data: Mapping[str, Any], kinds: Any) -> Any:
    by_kind = {kind.__dataclass_fields__["kind"].default: kind for kind in get_args(kinds)}
    described = data.get(what)
    try:
        facts = dict(described)  # type: ignore[arg-type]
        made = by_kind[facts.pop("kind")](**{k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()})
        sizes = [*getattr(made, "shape", ()), getattr(made, "size", 1), getattr(made, "num_numbers", 0) + 1]
        if not all(type(size) is int and 0 < size < 2**31 for size in sizes):
            raise ValueError("a size is no positive integer")
        if isinstance(made, VectorAction) and not np.isfinite([made.low, made.high]).all():
            raise ValueError("a bound is no number")
    except (TypeError, ValueError, KeyError) as error:
        known = ", ".join(by_kind)
        raise DataError(
            f"{what}: {described!r}, expected the fields of one of the kinds {known} ({error!r})"
        ) from error
    return made
