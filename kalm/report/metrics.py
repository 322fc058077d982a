"""Read the metrics.csv of every run: one row a logged update, one sparse column a metric (``kalm/loggers.py``)."""

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

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Updates and values of one metric, in the order of updates; empty when it was never logged."""
        points = sorted(self.values.get(metric, {}).items())
        return [update for update, _ in points], [value for _, value in points]

    def last(self, metric: str) -> float | None:
        """The last logged value, or None."""
        _, values = self.curve(metric)
        return values[-1] if values else None


def load_metrics(folders: Sequence[Path], prefixes: tuple[str, ...]) -> list[MetricLog]:
    """Read every run's metrics whose names start with one of ``prefixes``; runs without any are left out."""
    logs: dict[Path, MetricLog] = {}
    for folder in folders:
        for path in find_files([folder], METRICS_FILE):
            logs.setdefault(path.resolve(), MetricLog(folder_name(path.parent, Path(folder)), _read(path, prefixes)))
    return [log for log in logs.values() if log.values]


def folder_name(path: Path, searched: Path) -> str:
    """What to call a folder that was found: its path below the searched one, or its own name if it is that one."""
    relative = path.resolve().relative_to(searched.resolve()).as_posix()
    return relative if relative != "." else path.resolve().name


def _read(path: Path, prefixes: tuple[str, ...]) -> dict[str, dict[int, float]]:
    values: dict[str, dict[int, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            wanted = {name: text for name, text in row.items() if name and name.startswith(prefixes) and text}
            for metric, text in wanted.items():
                if row.get("step") and math.isfinite(float(text)):
                    values.setdefault(metric, {})[int(row["step"])] = float(text)
    return values
