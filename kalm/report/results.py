"""Read results.jsonl files: one line an episode, from which every success table and curve derives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kalm.core.errors import DataError
from kalm.report.paper import GOAL_SPLITS
from kalm.runs.folder import RESULTS_FILE


@dataclass(frozen=True)
class EpisodeRow:
    """One evaluated episode, as the success-rate callback writes it."""

    experiment: str
    algorithm: str
    seed: int
    update: int
    stage: str
    goal_split: str
    task: str
    instruction: str
    episode_seed: int
    is_success: bool
    num_steps: int
    episode_return: float


_FIELDS = {field.name: field.type for field in fields(EpisodeRow)}
_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "float": (int, float)}


def load_results(folders: Sequence[Path]) -> list[EpisodeRow]:
    """Read every results file at or below some folders.

    An episode that a resumed or repeated evaluation wrote again counts once: the later line wins.

    Raises:
        DataError: If a line is malformed; every bad line of the file is named at once.
    """
    rows: dict[tuple[Any, ...], EpisodeRow] = {}
    for path in find_files(folders, RESULTS_FILE):
        for row in _read_file(path):
            key = (row.experiment, row.seed, row.update, row.stage, row.goal_split, row.instruction, row.episode_seed)
            rows[key] = row
    return list(rows.values())


def find_files(folders: Sequence[Path], name: str) -> list[Path]:
    """Every file called ``name`` at or below the folders, sorted, each once."""
    found = {path.resolve(): path for folder in folders for path in sorted(Path(folder).rglob(name))}
    return [found[path] for path in sorted(found)]


def last_update(rows: Iterable[EpisodeRow]) -> list[EpisodeRow]:
    """The rows of each experiment's and seed's last checkpoint.

    The ``test`` stage is what counts; a run that was not tested yet falls back on its last validation.
    """
    return [row for run in _by_run(rows).values() for row in _of_updates(run, 1)]


def last_evaluations(rows: Iterable[EpisodeRow], num_evaluations: int) -> list[list[EpisodeRow]]:
    """The last evaluations during training of each experiment and seed, for the paper's "mean of the last five".

    Returns:
        One list of rows an evaluation, for every run that has that many.
    """
    evaluations = []
    for run in _by_run(row for row in rows if row.stage == "validate").values():
        updates = sorted({row.update for row in run})
        if len(updates) >= num_evaluations:
            evaluations += [[row for row in run if row.update == update] for update in updates[-num_evaluations:]]
    return evaluations


def splits_of(rows: Iterable[EpisodeRow]) -> list[str]:
    """The goal splits that occur, in the order of a table."""
    return in_order(row.goal_split for row in rows)


def in_order(goal_splits: Iterable[str]) -> list[str]:
    """Each split once: the paper's in its order, then others as they come."""
    present = dict.fromkeys(goal_splits)
    return [*(split for split in GOAL_SPLITS if split in present), *(s for s in present if s not in GOAL_SPLITS)]


def _by_run(rows: Iterable[EpisodeRow]) -> dict[tuple[str, int], list[EpisodeRow]]:
    runs: dict[tuple[str, int], list[EpisodeRow]] = {}
    for row in rows:
        runs.setdefault((row.experiment, row.seed), []).append(row)
    return runs


def _of_updates(run: list[EpisodeRow], num_updates: int) -> list[EpisodeRow]:
    run = [row for row in run if row.stage == "test"] or run
    updates = sorted({row.update for row in run})[-num_updates:]
    return [row for row in run if row.update in updates]


def _read_file(path: Path) -> list[EpisodeRow]:
    # What follows the last newline is nothing, or the half line of a writer that is at work or was killed.
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    rows, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not JSON ({error.msg})")
            continue
        bad = _bad_fields(data)
        if bad:
            problems.append(f"line {number}: {'; '.join(bad)}")
        else:
            rows.append(EpisodeRow(**{name: data[name] for name in _FIELDS}))
    if problems:
        raise DataError(
            f"results file {path} is malformed:\n  " + "\n  ".join(problems) + "\n"
            f"Each line is one JSON object with {', '.join(_FIELDS)}. Remove those lines, or run the evaluation again."
        )
    return rows


def _bad_fields(data: Any) -> list[str]:
    """Name every field that is missing or of the wrong type."""
    if not isinstance(data, dict):
        return [f"a {type(data).__name__} instead of an object"]
    bad = []
    for name, kind in _FIELDS.items():
        if name not in data:
            bad.append(f"{name} is missing")
        elif not isinstance(data[name], _TYPES[str(kind)]) or (kind == "int" and isinstance(data[name], bool)):
            bad.append(f"{name} is {data[name]!r}, not {kind}")
    return bad
