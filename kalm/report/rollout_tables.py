"""Imagined rollouts judged by the domain's own rules, beside the real ones and the paper (KALM, tables 1, 4 and 5).

For hard goals also by kind of goal, run by run: where imagination improves, where it only claims to.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kalm.core.errors import DataError
from kalm.core.names import SOURCE, Source
from kalm.data.choice import verdict_counts
from kalm.envs.evaluation import wilson_interval
from kalm.report import paper
from kalm.report.results import find_files, folder_name, in_order
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
        counts: Goal split -> what ``kalm.data.choice.verdict_counts`` counts.
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
    """Count the verdicts of every rollout store at or below some folders, named by its place below the roots or those.

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
        sources = store.rollouts[SOURCE].unique().tolist()
        rejected: Counter[str] = Counter()
        if (path.parent / REJECTED_FILE).is_file():  # shard -> reason -> rollouts
            for reasons in json.loads((path.parent / REJECTED_FILE).read_text(encoding="utf-8")).values():
                rejected.update(reasons)
        verdicts.append(
            StoreVerdicts(
                name=folder_name(path, roots or folders),
                domain=str(store.manifest["domain"]),
                source=Source(sources[0]).label if len(sources) == 1 else "mixed",
                flags=tuple(store.plausibility_flags),
                counts=verdict_counts(store),
                rejected=dict(rejected),
            )
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
        met, plausible, both = (_percent(counts[verdict], total) for verdict in ("success", "plausible", "both"))
        shown = EMPTY if in_paper is None else f"{in_paper:.0f}"
        cells.append((f"{split} ({store.name})", str(total), met, plausible, f"{counts['both']} ({both})", shown))
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
        in_paper = " / ".join(str(of_flag[flag][split]) for flag in flags if split in of_flag.get(flag, {}))
        total = counts["num_transitions"]
        rates = (_percent(counts[flag], total, 2) if flag in store.flags else EMPTY for flag in flags)
        cells.append((f"{store.source}, {split} ({store.name})", str(total), *rates, in_paper or EMPTY))
    named = (f"{flag.replace('_', ' ')} %" for flag in flags)
    header = ("rollouts", "transitions", *named, "paper, in this order %")
    note = "Percent of transitions, before any filter. The paper's column is its table 4 or 5."
    return Table("Plausibility", header, tuple(cells), note)


def _by_split(verdicts: Sequence[StoreVerdicts]) -> list[tuple[StoreVerdicts, str, dict[str, int]]]:
    """Real stores first, then by split, so that the lines to compare stand together."""
    order = in_order(split for store in verdicts for split in store.counts)
    lines = [(store, split, counts) for store in verdicts for split, counts in store.counts.items()]
    lines = [line for line in lines if line[2]["num_rollouts"]]
    return sorted(lines, key=lambda line: (line[0].source != Source.REAL.label, order.index(line[1]), line[0].name))


def _percent(part: int, whole: int, digits: int = 1) -> str:
    return f"{100 * part / whole:.{digits}f}" if whole else EMPTY


@dataclass(frozen=True)
class ComparedImagination:
    """One column of the comparison: which stores, what it is called, and what to show beside.

    Attributes:
        experiment: ``<domain>/<stage>/<name>``; the stores of all its seeds count.
        paper: Name of the paper's column, a key of ``paper.IMAGINED_MATCH``; None where it has none.
    """

    experiment: str
    label: str
    paper: str | None = None


@dataclass(frozen=True)
class MatchRate:
    """Imagined rollouts of one split, over all seeds and before any filter, and those of them that meet their goal.

    ``in_paper`` is the paper's percentage, if it has one.
    """

    num_rollouts: int
    num_matches: int
    in_paper: float | None

    @property
    def percent(self) -> float:
        """Share that meets its goal."""
        return 100 * self.num_matches / self.num_rollouts

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of ``percent``."""
        low, high = wilson_interval(self.num_matches, self.num_rollouts)
        return 100 * low, 100 * high

    def __str__(self) -> str:
        """The percentage, and the paper's in brackets."""
        return f"{self.percent:.1f}" + ("" if self.in_paper is None else f" ({self.in_paper:.0f})")


def match_rates(
    verdicts: Sequence[StoreVerdicts], compared: Sequence[ComparedImagination]
) -> dict[str, dict[str, MatchRate]]:
    """Rates by label and goal split; what was not imagined is left out."""
    rates: dict[str, dict[str, MatchRate]] = {column.label: {} for column in compared}
    for column in compared:
        stores = [store for store in verdicts if store.name.startswith(f"{column.experiment}/")]
        for split in in_order(split for store in stores for split in store.counts):
            counts = [store.counts[split] for store in stores if split in store.counts]
            num_rollouts, num_matches = (sum(count[key] for count in counts) for key in ("num_rollouts", "success"))
            if num_rollouts:
                in_paper = paper.IMAGINED_MATCH.get(stores[0].domain, {}).get(column.paper or "", {}).get(split)
                rates[column.label][split] = MatchRate(num_rollouts, num_matches, in_paper)
    return rates


def comparison_table(rates: Mapping[str, Mapping[str, MatchRate]]) -> Table:
    """One row a goal split, one column a model or a setting of imagination."""
    splits = in_order(split for of_split in rates.values() for split in of_split)
    cells = [(split, *(str(of_split.get(split, EMPTY)) for of_split in rates.values())) for split in splits]
    most = max((rate.num_rollouts for of_split in rates.values() for rate in of_split.values()), default=0)
    note = (
        f"Percent of imagined rollouts, before any filter, up to {most} a cell; in brackets the paper's, where its "
        "table 1 has the same."
    )
    return Table("Imagined rollouts that meet their goal", ("goal split", *rates), tuple(cells), note)


@dataclass(frozen=True)
class TaskVerdicts:
    """What a run, named by its folder, imagined for hard goals: task -> what ``callbacks.imagined_tasks`` counts."""

    name: str
    counts: dict[str, dict[str, Any]]


def load_task_verdicts(folders: Sequence[Path], roots: Sequence[Path] | None = None) -> list[TaskVerdicts]:
    """Read the counts of every run at or below some folders that imagined for hard goals, rounds in their order.

    Raises:
        DataError: If a file is malformed.
    """
    verdicts = []
    for path in find_files(folders, TASKS_FILE):
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            counts = {entry["task"]: entry for entry in entries if entry["goal_split"] == "hard"}
        except (ValueError, KeyError, TypeError) as error:
            advice = "delete it and imagine again to make it anew"
            raise DataError(f"{path} cannot be read ({error!r}); {advice}") from error
        if counts:
            verdicts.append(TaskVerdicts(folder_name(path.parent, roots or folders), counts))
    return sorted(verdicts, key=lambda found: _natural(found.name))


def task_verdict_table(verdicts: Sequence[TaskVerdicts]) -> Table:
    """Rates by kind of hard goal: for each run those that meet it, are kept, and meet it in the simulator too."""
    tasks = [*dict.fromkeys(task for found in verdicts for task in found.counts), _ALL]
    rates = {
        "meet their goal %": ("success", "num_rollouts"),
        "kept %": ("both", "num_rollouts"),
        "true in the simulator %": ("replayed_success", "num_replayed"),
    }
    cells = []
    for found in verdicts:
        counts = {**found.counts, _ALL: _sum(found.counts.values())}
        of_tasks = [counts.get(task) for task in tasks]
        rows = {
            label: [_percent(c[part], c[whole]) if c else EMPTY for c in of_tasks]
            for label, (part, whole) in rates.items()
        }
        rows["drift"] = [f"{c['drift']:.3f}" if c and c["drift"] is not None else EMPTY for c in of_tasks]
        cells += [(f"{found.name}: {label}", *row) for label, row in rows.items() if set(row) - {EMPTY}]
    note = (
        "Before any filter. kept: they meet their goal and no transition has a plausibility flag. true in the "
        "simulator: of those that meet their goal in imagination, the share whose actions make it come true from the "
        "same start. drift: how far the two then are apart, root mean square over the numbers of an observation. "
        "Replays are for this table only: nothing is trained on them."
    )
    return Table("Imagined hard goals by kind", ("run", *tasks), tuple(cells), note)


def _sum(entries: Collection[dict[str, Any]]) -> dict[str, Any]:
    """Counts of all tasks together, and the drift of all that was replayed."""
    keys = ("num_rollouts", "success", "both", "num_replayed", "replayed_success")
    total = {key: sum(entry[key] for entry in entries) for key in keys}
    drift = sum(entry["num_replayed"] * entry["drift"] for entry in entries if entry["num_replayed"])
    return {**total, "drift": drift / total["num_replayed"] if total["num_replayed"] else None}


def _natural(name: str) -> list[Any]:
    """round10 comes after round9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
