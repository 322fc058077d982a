"""Imagined rollouts judged by the domain's own rules, beside the real ones and the paper (KALM, tables 1, 4 and 5)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kalm.core.errors import DataError
from kalm.core.names import SOURCE, Source
from kalm.data.choice import verdict_counts
from kalm.report import paper
from kalm.report.metrics import folder_name
from kalm.report.results import find_files, in_order
from kalm.report.success_table import EMPTY
from kalm.report.table import Table
from kalm.store.layout import MANIFEST, UNFINISHED
from kalm.store.reader import RolloutStore

# Named by callbacks/rollout_writer.py, which a report should not have to import: it brings the language model.
REJECTED_FILE = "rejected.json"


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
