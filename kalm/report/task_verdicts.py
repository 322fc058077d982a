"""Imagined rollouts for hard goals by kind of goal, run by run: where imagination improves, where it only claims to."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kalm.core.errors import DataError
from kalm.report.metrics import folder_name
from kalm.report.results import find_files
from kalm.report.success_table import EMPTY
from kalm.report.table import Table

# Named by callbacks/imagined_tasks.py, which a report should not have to import: it brings the language model.
TASKS_FILE = "tasks.json"
_ALL = "all"


@dataclass(frozen=True)
class TaskVerdicts:
    """What one run imagined for hard goals.

    Attributes:
        name: Its folder below the folder that was searched.
        counts: Task -> what ``kalm.callbacks.imagined_tasks`` counts.
    """

    name: str
    counts: dict[str, dict[str, Any]]


def load_task_verdicts(folders: Sequence[Path], roots: Sequence[Path] | None = None) -> list[TaskVerdicts]:
    """Read the counts of every run at or below some folders that imagined for hard goals, rounds in their order.

    Args:
        folders: Where to search.
        roots: Runs are named by their place below one of these; ``folders`` by default.

    Raises:
        DataError: If a file is malformed.
    """
    verdicts = []
    for path in find_files(folders, TASKS_FILE):
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            counts = {entry["task"]: entry for entry in entries if entry["goal_split"] == "hard"}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} cannot be read ({error!r}); delete it and imagine again to make it anew"
            ) from error
        if counts:
            verdicts.append(TaskVerdicts(folder_name(path.parent, roots or folders), counts))
    return sorted(verdicts, key=lambda found: _natural(found.name))


def task_verdict_table(verdicts: Sequence[TaskVerdicts]) -> Table:
    """Rates by kind of hard goal: for each run those that meet it, are kept, and meet it in the simulator too."""
    tasks = list(dict.fromkeys(task for found in verdicts for task in found.counts))
    cells = []
    for found in verdicts:
        counts = {**found.counts, _ALL: _sum(found.counts.values())}
        rates = {
            "meet their goal %": ("success", "num_rollouts"),
            "kept %": ("both", "num_rollouts"),
            "true in the simulator %": ("replayed_success", "num_replayed"),
        }
        for label, (part, whole) in rates.items():
            row = [_percent(counts[task], part, whole) if task in counts else EMPTY for task in (*tasks, _ALL)]
            if any(cell != EMPTY for cell in row):
                cells.append((f"{found.name}: {label}", *row))
        drifts = [counts[task]["drift"] if task in counts else None for task in (*tasks, _ALL)]
        if any(drift is not None for drift in drifts):
            shown = (EMPTY if drift is None else f"{drift:.3f}" for drift in drifts)
            cells.append((f"{found.name}: drift", *shown))
    note = (
        "Before any filter. kept: they meet their goal and no transition has a plausibility flag. true in the "
        "simulator: of those that meet their goal in imagination, the share whose actions make it come true from the "
        "same start. drift: how far the two then are apart, root mean square over the numbers of an observation. "
        "Replays are for this table only: nothing is trained on them."
    )
    return Table("Imagined hard goals by kind", ("run", *tasks, _ALL), tuple(cells), note)


def _sum(entries: Collection[dict[str, Any]]) -> dict[str, Any]:
    """Counts of all tasks together, and the drift of all that was replayed."""
    keys = ("num_rollouts", "success", "both", "num_replayed", "replayed_success")
    total = {key: sum(entry[key] for entry in entries) for key in keys}
    drift = sum(entry["num_replayed"] * entry["drift"] for entry in entries if entry["num_replayed"])
    return {**total, "drift": drift / total["num_replayed"] if total["num_replayed"] else None}


def _percent(entry: dict[str, Any], part: str, whole: str) -> str:
    return f"{100 * entry[part] / entry[whole]:.1f}" if entry[whole] else EMPTY


def _natural(name: str) -> list[Any]:
    """round10 comes after round9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
