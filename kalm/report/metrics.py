"""What runs have logged (``metrics.csv``), and how well the grounded LLM does at the end (KALM, figures 7 and 12)."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kalm.report import paper
from kalm.report.results import find_files, in_order
from kalm.report.table import EMPTY, Table
from kalm.runs.folder import METRICS_FILE

GROUNDING_PREFIXES = ("explain/", "imagine/")
EXPLANATION_METRICS = {
    "explain/seen_prompt_accuracy": "explanation, seen prompt",
    "explain/unseen_prompt_accuracy": "explanation, unseen prompt",
}
STEP_METRICS = ("action_match", "state_match")
_PAPER = {
    "explain/seen_prompt_accuracy": f"> {paper.EXPLANATION_ACCURACY:.0f}",
    "explain/unseen_prompt_accuracy": f"> {paper.EXPLANATION_ACCURACY:.0f}",
    "imagine/easy/action_match": f"about {paper.EASY_ACTION_MATCH:.0f}",
    "imagine/easy/state_match": f"about {paper.EASY_STATE_MATCH:.0f}",
}


@dataclass(frozen=True)
class MetricLog:
    """The metrics of one run.

    Attributes:
        name: Its folder below the folder that was searched, for example ``clevr_robot/ground/tiny/seed=0``.
        values: Metric name -> update -> value; of an update that was logged twice the later row counts.
    """

    name: str
    values: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of its metrics."""
        return list(self.values)

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Updates and values of one metric, in the order of updates; empty when it was never logged."""
        points = sorted(self.values.get(metric, {}).items())
        return [update for update, _ in points], [value for _, value in points]

    def last(self, metric: str) -> float | None:
        """The last logged value, or None."""
        _, values = self.curve(metric)
        return values[-1] if values else None


def load_metrics(
    folders: Sequence[Path], prefixes: tuple[str, ...], roots: Sequence[Path] | None = None
) -> list[MetricLog]:
    """Read every run's metrics whose names start with one of ``prefixes``; runs without any are left out.

    Args:
        folders: Where to search.
        prefixes: Beginnings of metric names.
        roots: Runs are named by their place below one of these; ``folders`` by default.
    """
    files = find_files(folders, METRICS_FILE)
    logs = [MetricLog(folder_name(path.parent, roots or folders), _read(path, prefixes)) for path in files]
    return [log for log in logs if log.values]


def folder_name(path: Path, roots: Sequence[Path]) -> str:
    """What to call a folder: its path below the first root that holds it, or else its own name."""
    path = path.resolve()
    for root in map(Path.resolve, roots):
        if root in path.parents:
            return path.relative_to(root).as_posix()
    return path.name


def _read(path: Path, prefixes: tuple[str, ...]) -> dict[str, dict[int, float]]:
    values: dict[str, dict[int, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            wanted = {name: text for name, text in row.items() if name and name.startswith(prefixes) and text}
            for metric, text in wanted.items():
                if row.get("step") and math.isfinite(float(text)):
                    values.setdefault(metric, {})[int(row["step"])] = float(text)
    return values


def grounding_table(logs: Sequence[MetricLog]) -> Table:
    """The last logged value of every grounding metric: one row a metric, one column a run."""
    named = dict(EXPLANATION_METRICS)
    for split in imagined_splits(logs):
        for metric in ("success_rate", "plausible_rate", *STEP_METRICS):
            words = metric.removesuffix("_rate").replace("_", " ")
            named[f"imagine/{split}/{metric}"] = f"imagined {split}: {words}"
    cells = []
    for metric, label in named.items():
        values = [log.last(metric) for log in logs]
        if any(value is not None for value in values):
            shown = (EMPTY if value is None else f"{100 * value:.1f}" for value in values)
            cells.append((label, *shown, _PAPER.get(metric, EMPTY)))
    header = ("metric", *(log.name for log in logs), "paper")
    note = "Percent, at the last update at which it was measured, on the few rollouts that the callbacks imagine."
    return Table("Grounding", header, tuple(cells), note)


def imagined_splits(logs: Sequence[MetricLog]) -> list[str]:
    """Goal splits that any run imagined rollouts for, in the order of a table."""
    names = (name.split("/") for log in logs for name in log.names)
    return in_order(name[1] for name in names if name[0] == "imagine" and len(name) == 3)
