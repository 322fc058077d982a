"""Imagined rollouts judged by the domain's own rules, beside the real ones and the paper (KALM, tables 1, 4 and 5).

For hard goals also by kind of goal, run by run: where imagination improves, where it only claims to.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kalm.core.errors import DataError
from kalm.core.names import SOURCE, Source
from kalm.data.filters import verdict_counts
from kalm.report import paper
from kalm.report.metrics import folder_name
from kalm.report.results import find_files, in_order
from kalm.report.table import EMPTY, Table
from kalm.runs.folder import REJECTED_FILE, TASKS_FILE
from kalm.store.layout import MANIFEST, UNFINISHED
from kalm.store.reader import RolloutStore

_ALL = "all"


@dataclass(frozen=True)
class StoreVerdicts:
    """Verdict counts of one rollout store.

    Attributes:
        name: Its folder below the folder that was searched.
        domain: Name of the domain it belongs to.
        source: ``real`` or ``imaginary``; a store that mixes them says ``mixed``.
        flags: Names of the domain's plausibility flags.
        counts: Goal split -> what ``kalm.data.filters.verdict_counts`` counts.
        rejected: Reason -> imagined rollouts that were too broken to store.
    """

    name: str
    domain: str
    source: str
    flags: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    rejected: dict[str, int] = field(default_factory=dict)


def load_verdicts(
    folders: Sequence[Path], roots: Sequence[Path] | None = None
) -> tuple[list[StoreVerdicts], list[str]]:
    """Count the verdicts of every rollout store at or below some folders.

    Args:
        folders: Where to search.
        roots: Stores are named by their place below one of these; ``folders`` by default.

    Returns:
        The counts, and one sentence for each store that could not be read.
    """
    verdicts = []
    problems = [
        f"rollout store {marker.parent} is unfinished"
        for marker in find_files(folders, UNFINISHED)
        if not (marker.parent / MANIFEST).exists()
    ]
    for manifest in find_files(folders, MANIFEST):
        path = manifest.parent
        try:
            store = RolloutStore(path)
        except DataError as error:
            problems.append(f"rollout store {path} could not be read: {error}")
            continue
        sources = {int(source) for source in store.rollouts[SOURCE].unique()}
        source = Source(sources.pop()).label if len(sources) == 1 else "mixed"
        name = folder_name(path, roots or folders)
        flags, rejected = tuple(store.plausibility_flags), _rejected(path.parent / REJECTED_FILE)
        verdicts.append(
            StoreVerdicts(name, str(store.manifest["domain"]), source, flags, verdict_counts(store), rejected)
        )
    return verdicts, problems


def imagination_table(verdicts: Sequence[StoreVerdicts]) -> Table:
    """How many imagined rollouts meet their goal and are plausible, by split; the paper's table 1 beside."""
    cells = []
    for store, split, counts in _by_split(verdicts):
        if store.source == Source.REAL.label:
            continue
        total = counts["num_rollouts"]
        in_paper = paper.IMAGINED_MATCH.get(store.domain, {}).get(paper.FULL, {}).get(split)
        cells.append(
            (
                f"{split} ({store.name})",
                str(total),
                _percent(counts["success"], total),
                _percent(counts["plausible"], total),
                f"{counts['both']} ({_percent(counts['both'], total)})",
                EMPTY if in_paper is None else f"{in_paper:.0f}",
            )
        )
    header = ("imagined for", "rollouts", "meet their goal %", "plausible %", "both: kept (%)", "paper: meet goal %")
    note = (
        "By the domain's own success rule, before any filter. plausible: no transition has a plausibility flag. "
        "The paper's column is its table 1, full method."
    )
    for store in verdicts:
        if store.rejected:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(store.rejected.items()))
            note += f" Too broken to be stored, and not counted above, in {store.name}: {reasons}."
    return Table("Imagined rollouts", header, tuple(cells), note)


def plausibility_table(verdicts: Sequence[StoreVerdicts]) -> Table:
    """Share of transitions with each plausibility flag, real and imagined; the paper's tables 4 and 5 beside."""
    flags = tuple(dict.fromkeys(flag for store in verdicts for flag in store.flags))
    cells = []
    for store, split, counts in _by_split(verdicts):
        of_flag = paper.IMPLAUSIBLE.get(store.domain, {}) if store.source == Source.IMAGINARY.label else {}
        in_paper = [of_flag[flag][split] for flag in flags if split in of_flag.get(flag, {})]
        cells.append(
            (
                f"{store.source}, {split} ({store.name})",
                str(counts["num_transitions"]),
                *(
                    _percent(counts[flag], counts["num_transitions"], 2) if flag in store.flags else EMPTY
                    for flag in flags
                ),
                " / ".join(map(str, in_paper)) or EMPTY,
            )
        )
    header = (
        "rollouts",
        "transitions",
        *(f"{flag.replace('_', ' ')} %" for flag in flags),
        "paper, in this order %",
    )
    note = "Percent of transitions, before any filter. The paper's column is its table 4 or 5."
    return Table("Plausibility", header, tuple(cells), note)


def _rejected(path: Path) -> dict[str, int]:
    """Sum over shards what the rollout writer counted (shard -> reason -> rollouts)."""
    total: Counter[str] = Counter()
    if path.is_file():
        for reasons in json.loads(path.read_text(encoding="utf-8")).values():
            total.update(reasons)
    return dict(total)


def _by_split(verdicts: Sequence[StoreVerdicts]) -> list[tuple[StoreVerdicts, str, dict[str, int]]]:
    """Real stores first, then by split, so that the lines to compare stand together."""
    order = in_order(split for store in verdicts for split in store.counts)
    lines = [(store, split, counts) for store in verdicts for split, counts in store.counts.items()]
    lines = [line for line in lines if line[2]["num_rollouts"]]
    return sorted(lines, key=lambda line: (line[0].source != Source.REAL.label, order.index(line[1]), line[0].name))


def _percent(part: int, whole: int, digits: int = 1) -> str:
    return f"{100 * part / whole:.{digits}f}" if whole else EMPTY


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
            row = [
                _percent(counts[task][part], counts[task][whole]) if task in counts else EMPTY
                for task in (*tasks, _ALL)
            ]
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


def _natural(name: str) -> list[Any]:
    """round10 comes after round9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
