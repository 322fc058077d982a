"""Read the metrics.csv of every run: one row a logged update, one sparse column a metric (``kalm/runs/loggers.py``)."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kalm.report.results import find_files

METRICS_FILE = "metrics.csv"


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
