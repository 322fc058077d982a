"""Finds everything that is wrong with a rollout, at once, before it reaches a store.

Shape letters: T steps, O numbers in an observation, A numbers in a continuous action.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.names import Source
from kalm.core.rollout import Rollout

_MAX_STEPS = np.iinfo(np.int16).max  # the store counts a rollout's steps in 16 bits
_MAX_LISTED = 40


def validate_rollout(
    rollout: Rollout, observation_space: gym.spaces.Box, action_space: gym.spaces.Discrete | gym.spaces.Box
) -> list[str]:
    """Every problem of a rollout, one line each; an empty list means that a store takes it.

    A line names the field first, then what was found (the first offending step and value) and what is allowed.
    """
    return [*_array_problems(rollout, observation_space, action_space), *_label_problems(rollout)]


def raise_problems(what: str, problems: Iterable[str], remedy: str) -> None:
    """Raise one error that lists all problems, if there are any.

    Raises:
        DataError: With one line a problem; beyond 40 the rest are counted.
    """
    lines = list(problems)
    if not lines:
        return
    more = [f"... and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
    raise DataError("\n  ".join([f"{what}:", *lines[:_MAX_LISTED], *more]) + f"\n{remedy}")


def _array_problems(
    rollout: Rollout, observation_space: gym.spaces.Box, action_space: gym.spaces.Discrete | gym.spaces.Box
) -> Iterator[str]:
    is_discrete = isinstance(action_space, gym.spaces.Discrete)
    num_steps = len(rollout.actions) if isinstance(rollout.actions, np.ndarray) and rollout.actions.ndim else None
    if num_steps == 0:
        yield "actions: the rollout has no step; at least one is needed"
    if num_steps is not None and num_steps > _MAX_STEPS:
        yield f"actions: {num_steps} steps; a rollout has at most {_MAX_STEPS}"
    after = None if num_steps is None else num_steps + 1
    action_shape = () if is_discrete else action_space.shape
    expected: list[tuple[str, Any, int | None, tuple[int, ...] | None, str]] = [
        ("observations", rollout.observations, after, observation_space.shape, "float"),
        ("actions", rollout.actions, num_steps, action_shape, "integer" if is_discrete else "float"),
        ("rewards", rollout.rewards, num_steps, (), "float"),
        ("terminated", rollout.terminated, num_steps, (), "bool"),
        ("truncated", rollout.truncated, num_steps, (), "bool"),
    ]
    well_formed = set()
    for field, array, length, row_shape, kind in expected:
        problems = list(_shape_problems(field, array, length, row_shape or (), kind))
        yield from problems
        if not problems:
            well_formed.add(field)
            if kind == "float":
                yield from _finite_problems(field, array)
    if "actions" in well_formed:
        yield from _bound_problems(rollout.actions, action_space)
    if well_formed >= {"terminated", "truncated"} and num_steps:
        yield from _ending_problems(rollout.terminated, rollout.truncated)


def _shape_problems(
    field: str, array: object, length: int | None, row_shape: tuple[int, ...], kind: str
) -> Iterator[str]:
    wanted = f"{'an' if kind == 'integer' else 'a'} {kind} array of shape {_shape_text(field, length, row_shape)}"
    if not isinstance(array, np.ndarray):
        yield f"{field}: {type(array).__name__}, expected {wanted}"
        return
    kinds = {"float": "f", "integer": "iu", "bool": "b"}[kind]
    if array.dtype.kind not in kinds:
        yield f"{field}: dtype {array.dtype}, expected {wanted}"
    if (
        array.ndim != 1 + len(row_shape)
        or array.shape[1:] != row_shape
        or (length is not None and len(array) != length)
    ):
        yield f"{field}: shape {array.shape}, expected {wanted}"


def _shape_text(field: str, length: int | None, row_shape: tuple[int, ...]) -> str:
    rows = ("T + 1" if field == "observations" else "T") if length is None else str(length)
    return f"({', '.join([rows, *map(str, row_shape)])}{',' if not row_shape else ''})"


def _finite_problems(field: str, array: NDArray[np.floating[Any]]) -> Iterator[str]:
    with np.errstate(over="ignore"):
        wrong = np.argwhere(~np.isfinite(array.astype(np.float32)))
    if len(wrong):
        yield f"{field}: {_where(array, wrong[0])}; every number must be finite in 32 bits"


def _bound_problems(actions: NDArray[Any], action_space: gym.spaces.Discrete | gym.spaces.Box) -> Iterator[str]:
    if isinstance(action_space, gym.spaces.Discrete):
        outside = (actions < 0) | (actions >= action_space.n)
        allowed = f"integers in [0, {action_space.n})"
    else:
        # NaN compares false and is reported as such; the slack is one rounding from 64 to 32 bits.
        outside = (actions < action_space.low - 1e-6) | (actions > action_space.high + 1e-6)
        allowed = f"numbers in [{action_space.low.min():g}, {action_space.high.max():g}]"
    wrong = np.argwhere(outside)
    if len(wrong):
        yield f"actions: {_where(actions, wrong[0])}; allowed are {allowed}"


def _where(array: NDArray[Any], place: NDArray[np.intp]) -> str:
    column = f", column {place[1]}" if len(place) > 1 else ""
    return f"{array[tuple(place)]} at step {place[0]}{column}"


def _ending_problems(terminated: NDArray[np.bool_], truncated: NDArray[np.bool_]) -> Iterator[str]:
    for field, flags in (("terminated", terminated), ("truncated", truncated)):
        early = np.flatnonzero(flags[:-1])
        if len(early):
            yield f"{field}: True at step {early[0]}, but only the last step ({len(flags) - 1}) may end a rollout"
    both = np.flatnonzero(terminated & truncated)
    if len(both):
        yield f"terminated, truncated: both True at step {both[0]}; a step ends for one reason"


def _label_problems(rollout: Rollout) -> Iterator[str]:
    if not isinstance(rollout.instruction, str) or not rollout.instruction.strip():
        yield f"instruction: {rollout.instruction!r}, expected a sentence"
    if not isinstance(rollout.goal_split, str) or not rollout.goal_split:
        yield f"goal_split: {rollout.goal_split!r}, expected the name of a goal split"
    if not isinstance(rollout.source, Source):
        yield f"source: {rollout.source!r}, expected one of {', '.join(s.label for s in Source)}"
    if not isinstance(rollout.is_success, (bool, np.bool_)):
        yield f"is_success: {rollout.is_success!r}, expected True or False"
    for field, value in (
        ("goal", rollout.goal),
        ("violations", rollout.violations),
        ("provenance", rollout.provenance),
    ):
        if not isinstance(value, Mapping):
            yield f"{field}: {type(value).__name__}, expected a mapping of plain JSON types"
            continue
        try:
            json.dumps(dict(value), allow_nan=False)
        except (TypeError, ValueError) as error:
            yield f"{field}: not plain JSON ({error})"
    if isinstance(rollout.goal, Mapping) and not rollout.goal:
        yield "goal: empty, expected the goal's JSON form"
