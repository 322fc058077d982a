"""Whether a store's content is what was written, and what can be learned from: looked at once, not at every opening.

``.checked.json`` beside a manifest says which files were looked at, and their size and times as of then. A file is
read again when one of these has changed; so is a copy, which has times of its own. What is found then is named by file,
rollout and step: a changed SHA-256, numbers that are not finite, and whatever is out of its range.

Shape letters: N transitions, R rollouts, n rows of a piece.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core import names
from kalm.core.durable import file_sha256, write_durably
from kalm.core.names import Source
from kalm.core.specs import NUMBERS, DiscreteAction, GridObservation, Spec, TextAction, VectorAction
from kalm.store import layout

CHECKED = ".checked.json"
_PIECE = 1 << 18  # rows that are looked at together
# Within the grain of a file system's clock a file can change twice and keep its times.
_CLOCK_GRAIN_SECONDS = 1.0
_ROUNDING = 1e-6  # of a bound, from 64 to 32 bits


class Checked:
    """Which files of a folder have to be looked at."""

    def __init__(self, folder: Path, files: Mapping[str, Mapping[str, Any]], anew: bool) -> None:
        """Compare with what is noted.

        Args:
            folder: Of the manifest.
            files: Of the manifest: name -> SHA-256.
            anew: Look at all of them, whatever is noted.
        """
        self._folder = folder
        self._seen = {name: self._facts(name, entry["sha256"]) for name, entry in files.items()}
        noted = {} if anew else self._noted()
        self.unknown = [name for name, facts in self._seen.items() if facts is None or noted.get(name) != facts]

    def note(self) -> None:
        """Note that all is well; where the folder cannot be written to, it is looked at again the next time."""
        settled = time.time() - _CLOCK_GRAIN_SECONDS
        known = {name: facts for name, facts in self._seen.items() if facts and max(facts[1:3]) < settled * 1e9}
        if self.unknown and known:
            with contextlib.suppress(OSError):
                write_durably(self._folder / CHECKED, json.dumps(known, sort_keys=True).encode())

    def _facts(self, name: str, digest: str) -> list[Any] | None:
        try:
            found = (self._folder / name).stat()
        except OSError:
            return None
        return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, digest]

    def _noted(self) -> dict[str, Any]:
        try:
            noted = json.loads((self._folder / CHECKED).read_bytes())
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}


def changed_files(folder: Path, files: Mapping[str, Mapping[str, Any]], looked_at: Collection[str]) -> Iterator[str]:
    """Which of the files that are looked at have another SHA-256 than their manifest says, one line each."""
    for name in looked_at:
        if (folder / name).is_file() and file_sha256(folder / name) != files[name]["sha256"]:
            yield f"{name}: its content changed since it was written (SHA-256 differs)"


def value_problems(
    store: Path, manifest: Mapping[str, Any], spec: Spec, tables: layout.Tables, looked_at: Collection[str]
) -> Iterator[str]:
    """What is wrong with the numbers in a store whose files have the right sizes, one line a column.

    Args:
        store: Its folder.
        manifest: Its manifest.
        spec: What observations and actions are.
        tables: Columns of its tables.
        looked_at: Files that have to be looked at.
    """
    num_rows = {table: int(manifest[f"num_{table}"]) for table in tables}
    columns = {
        (table, key): column
        for table, forms in tables.items()
        for key, column in _mapped(store, table, forms, num_rows[table]).items()
    }
    of_rollouts = {key: column for (table, key), column in columns.items() if table == layout.ROLLOUTS}
    wrong = list(_rollout_problems(of_rollouts, num_rows[layout.TRANSITIONS], _num_lines(store / layout.INSTRUCTIONS)))
    yield from wrong
    if wrong:
        return  # nobody knows where a rollout begins
    starts = of_rollouts["start"]
    for (table, key), column in columns.items():
        name = layout.column_file(table, key)
        allowed = _allowed(key, spec, manifest, of_rollouts) if table == layout.TRANSITIONS else None
        if allowed is None or name not in looked_at:
            continue
        is_right, what = allowed
        for first in range(0, len(column), _PIECE):
            piece = column[first : first + _PIECE]
            right = is_right(piece, first)
            if not right.all():
                place = np.argwhere(~right)[0]
                row = first + int(place[0])
                rollout = int(np.searchsorted(starts, row, side="right")) - 1
                where = f"rollout {rollout}, step {row - int(starts[rollout])}"
                where += f", column {place[1]}" if len(place) > 1 else ""
                yield f"{name}: {piece[tuple(place)]} in {where}; {what}"
                break
    yield from _state_problems(store, manifest, spec, looked_at)


# Whether the values of a piece, whose first row is given, are right, of its shape; and what right is.
_Allowed = tuple[Callable[[NDArray[Any], int], NDArray[np.bool_]], str]


def _allowed(
    key: layout.Key, spec: Spec, manifest: Mapping[str, Any], rollouts: Mapping[layout.Key, NDArray[Any]]
) -> _Allowed | None:
    """What a column of the transitions may hold; None if anything."""
    if key in (names.OBSERVATION, names.NEXT_OBSERVATION, names.REWARD):
        return lambda piece, first: np.isfinite(piece), "every number must be finite"
    if key == names.ACTION and isinstance(spec.action, VectorAction):
        low, high = np.array(spec.action.low) - _ROUNDING, np.array(spec.action.high) + _ROUNDING
        what = f"allowed are numbers in [{min(spec.action.low):g}, {max(spec.action.high):g}]"
        return lambda piece, first: (piece >= low) & (piece <= high), what  # NaN compares false
    sizes: dict[layout.Key, int] = {}
    if isinstance(spec.action, DiscreteAction):
        sizes[names.ACTION] = spec.action.size
    elif isinstance(spec.action, TextAction):
        sizes[names.ACTION] = manifest[f"num_{layout.ACTIONS}"]
    if layout.STATES in layout.row_tables(spec):
        sizes |= dict.fromkeys((names.STATE, names.NEXT_STATE), manifest[f"num_{layout.STATES}"])
    if key in sizes:
        size = sizes[key]
        return lambda piece, first: (piece >= 0) & (piece < size), f"allowed are integers in [0, {size})"
    if key in (names.TERMINATED, names.TRUNCATED):
        return lambda piece, first: piece.view(np.uint8) <= 1, "allowed are true and false"
    if key in (names.ROLLOUT_ID, names.STEP, names.INSTRUCTION_ID, names.SOURCE):
        return lambda piece, first: piece == _expected(key, first, len(piece), rollouts), "its rollout says otherwise"
    return None


def _expected(key: layout.Key, first: int, num_rows: int, rollouts: Mapping[layout.Key, NDArray[Any]]) -> NDArray[Any]:
    """What rows of a column must be, by the rollouts that they belong to, shape (n,)."""
    rows = np.arange(first, first + num_rows)
    rollout = np.searchsorted(rollouts["start"], rows, side="right") - 1
    if key == names.ROLLOUT_ID:
        return rollout
    expected: NDArray[Any] = rows - rollouts["start"][rollout] if key == names.STEP else rollouts[key][rollout]
    return expected


def _rollout_problems(
    rollouts: Mapping[layout.Key, NDArray[Any]], num_transitions: int, num_instructions: int
) -> Iterator[str]:
    """What is wrong with the table of rollouts; it is small, and looked at each time."""
    length, start = rollouts["length"].astype(np.int64), rollouts["start"]
    instruction, source = rollouts[names.INSTRUCTION_ID], rollouts[names.SOURCE]
    checks: list[tuple[layout.Key, NDArray[np.bool_], str]] = [
        ("length", length >= 1, "a rollout has at least one step"),
        ("start", start == length.cumsum() - length, "rollouts must follow each other without a gap"),
        (
            names.INSTRUCTION_ID,
            (instruction >= -1) & (instruction < num_instructions),
            f"allowed are rows of {layout.INSTRUCTIONS} in [-1, {num_instructions})",
        ),
        (names.SOURCE, np.isin(source, list(map(int, Source))), f"allowed are {', '.join(f'{s:d}' for s in Source)}"),
    ]
    for key, right, what in checks:
        if not right.all():
            rollout = int(np.flatnonzero(~right)[0])
            yield f"{layout.column_file(layout.ROLLOUTS, key)}: {rollouts[key][rollout]} in rollout {rollout}; {what}"
    if int(length.sum()) != num_transitions:
        yield f"{layout.column_file(layout.ROLLOUTS, 'length')}: {length.sum()} steps in all, not {num_transitions}"


def _state_problems(store: Path, manifest: Mapping[str, Any], spec: Spec, looked_at: Collection[str]) -> Iterator[str]:
    """Numbers beside a grid that are not finite."""
    name = f"{layout.STATES}/{layout.ROWS_FILE}"
    if not isinstance(spec.observation, GridObservation) or not spec.observation.num_numbers or name not in looked_at:
        return
    states = np.memmap(store / name, dtype=spec.observation.dtype, mode="r")
    for first in range(0, len(states), _PIECE):
        wrong = np.argwhere(~np.isfinite(states[first : first + _PIECE][NUMBERS]))
        if len(wrong):
            yield f"{name}: state {first + wrong[0][0]}, number {wrong[0][1]} is not finite; every number must be"
            return


def _mapped(
    store: Path, table: str, forms: Mapping[layout.Key, layout.Column], num_rows: int
) -> dict[layout.Key, NDArray[Any]]:
    mapped = layout.map_columns(store, table, forms, num_rows)
    # Bytes that are neither 0 nor 1 are to be seen as such.
    return {key: (c.view(torch.uint8) if c.dtype == torch.bool else c).numpy() for key, c in mapped.items()}


def _num_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines())
