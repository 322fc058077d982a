"""Finds everything that is wrong with a rollout, at once, before it reaches a store.

Shape letters: T steps, O numbers in an observation, A numbers in a continuous action.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kalm.core import specs
from kalm.core.errors import DataError
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.core.specs import GRID, NUMBERS, GridObservation, Spec, VectorAction

# Why no store should hold a rollout that somebody imagined; it is left out and counted, rather than being an error.
EMPTY, TOO_LONG, NOT_FINITE, OFF_THE_WORLD = "empty", "too long", "not finite", "off the world"
_MALFORMED = "malformed"

_MAX_STEPS = np.iinfo(np.int16).max  # the store counts a rollout's steps in 16 bits
_MAX_LISTED = 40
_KINDS = {"float": "f", "integer": "iu", "bool": "b", "string": "U"}


class _Problem(NamedTuple):
    """One thing that is wrong: why, in one of a few words, and in a line of its own."""

    reason: str
    line: str


def validate_rollout(rollout: Rollout, spec: Spec) -> list[str]:
    """Every problem of a rollout, one line each; an empty list means that a store takes it.

    A line names the field first, then what was found (the first offending step and value) and what is allowed.
    """
    return [problem.line for problem in _array_problems(rollout, spec, _MAX_STEPS)] + list(_label_problems(rollout))


def rejection(rollout: Rollout, spec: Spec, max_steps: int, low: NDArray[Any], high: NDArray[Any]) -> str:
    """Why an imagined rollout is to be left out; an empty string if there is no reason.

    ``low`` and ``high`` are the least and greatest observation of the world, shape (O,).

    Returns:
        ``empty``, ``too long``, ``not finite`` or ``off the world``, the first of them that holds. Whatever else is
        wrong with a rollout is a mistake in the code that made it, and the store will say so.
    """
    found = {problem.reason for problem in _array_problems(rollout, spec, max_steps)}
    for reason in (EMPTY, TOO_LONG, NOT_FINITE):
        if reason in found:
            return reason
    observations = rollout.observations
    is_off = observations.shape[1:] == low.shape and bool(((observations < low) | (observations > high)).any())
    return OFF_THE_WORLD if is_off else ""


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


def _array_problems(rollout: Rollout, spec: Spec, max_steps: int) -> Iterator[_Problem]:
    num_steps = len(rollout.actions) if isinstance(rollout.actions, np.ndarray) and rollout.actions.ndim else None
    if num_steps == 0:
        yield _Problem(EMPTY, "actions: the rollout has no step; at least one is needed")
    if num_steps is not None and num_steps > max_steps:
        yield _Problem(TOO_LONG, f"actions: {num_steps} steps; a rollout has at most {max_steps}")
    after = None if num_steps is None else num_steps + 1
    expected = [
        *((field, array, after, *form) for field, array, *form in _observation_parts(rollout, spec.observation)),
        ("actions", rollout.actions, num_steps, *_action_form(spec.action)),
        ("rewards", rollout.rewards, num_steps, (), "float"),
        ("terminated", rollout.terminated, num_steps, (), "bool"),
        ("truncated", rollout.truncated, num_steps, (), "bool"),
    ]
    if rollout.optimal_actions is not None:
        num_actions = spec.action.size if isinstance(spec.action, specs.DiscreteAction) else 0
        expected.append(("optimal_actions", rollout.optimal_actions, num_steps, (num_actions,), "bool"))
    well_formed = set()
    for field, array, length, row_shape, kind in expected:
        lines = list(_form_problems(field, array, length, row_shape, kind))
        yield from (_Problem(_MALFORMED, line) for line in lines)
        if not lines:
            well_formed.add(field)
            if kind == "float":
                yield from (_Problem(NOT_FINITE, line) for line in _finite_problems(field, array))
    if "actions" in well_formed:
        yield from (_Problem(_MALFORMED, line) for line in _action_problems(rollout.actions, spec.action))
    if well_formed >= {"actions", "optimal_actions"}:
        problems = _optimal_problems(rollout.actions, rollout.optimal_actions)
        yield from (_Problem(_MALFORMED, line) for line in problems)
    if isinstance(spec.observation, GridObservation) and (field := expected[0][0]) in well_formed:
        limits = np.iinfo(spec.observation.grid_dtype)
        problems = _bound_problems(field, expected[0][1], limits.min, limits.max)
        yield from (_Problem(_MALFORMED, line) for line in problems)
    if well_formed >= {"terminated", "truncated"} and num_steps:
        yield from (_Problem(_MALFORMED, line) for line in _ending_problems(rollout.terminated, rollout.truncated))


def _observation_parts(rollout: Rollout, spec: specs.Observation) -> list[tuple[str, Any, tuple[int, ...], str]]:
    """Name, array, shape of a row and kind of number of each part of the observations."""
    observations = rollout.observations
    if isinstance(spec, specs.TextObservation):
        return [("observations", observations, (), "string")]
    if not isinstance(spec, GridObservation):
        return [("observations", observations, (spec.size,), "float")]
    if not spec.num_numbers:
        return [("observations", observations, spec.shape, "integer")]
    parts = dict.fromkeys((GRID, NUMBERS))
    if isinstance(observations, np.ndarray) and set(observations.dtype.names or ()) == set(parts):
        parts = {name: observations[name] for name in parts}
    return [
        (f"observations[{GRID!r}]", parts[GRID], spec.shape, "integer"),
        (f"observations[{NUMBERS!r}]", parts[NUMBERS], (spec.num_numbers,), "float"),
    ]


def _action_form(spec: specs.Action) -> tuple[tuple[int, ...], str]:
    if isinstance(spec, VectorAction):
        return (spec.size,), "float"
    return (), "integer" if isinstance(spec, specs.DiscreteAction) else "string"


def _form_problems(
    field: str, array: object, length: int | None, row_shape: tuple[int, ...], kind: str
) -> Iterator[str]:
    rows = ("T + 1" if field.startswith("observations") else "T") if length is None else str(length)
    shape = f"({', '.join([rows, *map(str, row_shape)])}{',' if not row_shape else ''})"
    wanted = f"{'an' if kind == 'integer' else 'a'} {kind} array of shape {shape}"
    if not isinstance(array, np.ndarray):
        yield f"{field}: {type(array).__name__}, expected {wanted}"
        return
    if array.dtype.kind not in _KINDS[kind]:
        yield f"{field}: dtype {array.dtype}, expected {wanted}"
    if not array.ndim or array.shape[1:] != row_shape or length not in (None, len(array)):
        yield f"{field}: shape {array.shape}, expected {wanted}"


def _finite_problems(field: str, array: NDArray[np.floating[Any]]) -> Iterator[str]:
    with np.errstate(over="ignore"):
        wrong = np.argwhere(~np.isfinite(array.astype(np.float32)))
    if len(wrong):
        yield f"{field}: {_where(array, wrong[0])}; every number must be finite in 32 bits"


def _action_problems(actions: NDArray[Any], spec: specs.Action) -> Iterator[str]:
    if isinstance(spec, specs.DiscreteAction):
        yield from _bound_problems("actions", actions, 0, spec.size - 1)
    elif isinstance(spec, VectorAction):
        # NaN compares false and is reported as such; the slack is one rounding from 64 to 32 bits.
        low, high = np.asarray(spec.low), np.asarray(spec.high)
        wrong = np.argwhere((actions < low - 1e-6) | (actions > high + 1e-6))
        if len(wrong):
            yield f"actions: {_where(actions, wrong[0])}; allowed are numbers in [{low.min():g}, {high.max():g}]"


def _optimal_problems(actions: NDArray[Any], optimal: Any) -> Iterator[str]:
    is_action = (actions >= 0) & (actions < optimal.shape[1])  # others are reported as such
    wrong = np.flatnonzero(is_action & ~optimal[np.arange(len(actions)), np.where(is_action, actions, 0)])
    if len(wrong):
        best = np.flatnonzero(optimal[wrong[0]]).tolist()
        yield f"optimal_actions: {best} at step {wrong[0]}, where {actions[wrong[0]]} was taken; it must be among them"


def _bound_problems(field: str, array: NDArray[Any], least: int, greatest: int) -> Iterator[str]:
    wrong = np.argwhere((array < least) | (array > greatest))
    if len(wrong):
        yield f"{field}: {_where(array, wrong[0])}; allowed are integers in [{least}, {greatest + 1})"


def _where(array: NDArray[Any], place: NDArray[np.intp]) -> str:
    column = f", column {', '.join(map(str, place[1:]))}" if len(place) > 1 else ""
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
    if rollout.goal == {}:
        if rollout.instruction != "" or rollout.goal_split != "":
            yield f"goal: empty, but its instruction is {rollout.instruction!r}; give goal, sentence and split, or none"
    else:
        if not isinstance(rollout.instruction, str) or not rollout.instruction.strip():
            yield f"instruction: {rollout.instruction!r}, expected a sentence"
        if not isinstance(rollout.goal_split, str) or not rollout.goal_split:
            yield f"goal_split: {rollout.goal_split!r}, expected the name of a goal split"
    if not isinstance(rollout.source, Source):
        yield f"source: {rollout.source!r}, expected one of {', '.join(s.label for s in Source)}"
    if not isinstance(rollout.is_success, (bool, np.bool_)):
        yield f"is_success: {rollout.is_success!r}, expected True or False"
    for field in ("goal", "violations", "provenance"):
        value = getattr(rollout, field)
        if not isinstance(value, Mapping):
            yield f"{field}: {type(value).__name__}, expected a mapping of plain JSON types"
            continue
        try:
            json.dumps(dict(value), allow_nan=False)
        except (TypeError, ValueError) as error:
            yield f"{field}: not plain JSON ({error})"
