"""Read the metrics.csv files of Lightning's CSVLogger: sparse columns over the update counter."""

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
        values: Metric name -> update -> value; an update that was logged twice (after a resume) keeps the later value.
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
    """Read every run's metrics whose names start with one of ``prefixes``; runs without any are left out.

    Files of one run (its logger starts ``version_1`` beside ``version_0`` after a resume) are joined in their order.
    """
    logs: dict[str, MetricLog] = {}
    for folder in folders:
        for path in sorted(find_files([folder], METRICS_FILE), key=_version):
            run = _run_folder(path)
            name = run.resolve().relative_to(Path(folder).resolve()).as_posix() if run != Path(folder) else run.name
            _read_into(logs.setdefault(name, MetricLog(name)), path, prefixes)
    return [log for _, log in sorted(logs.items()) if log.values]


def _read_into(log: MetricLog, path: Path, prefixes: tuple[str, ...]) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            step = line.get("step")
            if not step:
                continue
            for metric, text in line.items():
                if metric is not None and metric.startswith(prefixes) and text:
                    value = float(text)
                    if math.isfinite(value):
                        log.values.setdefault(metric, {})[int(float(step))] = value


def _version(path: Path) -> tuple[str, int]:
    folder = path.parent.name
    number = folder.removeprefix("version_")
    return (_run_folder(path).as_posix(), int(number) if folder.startswith("version_") and number.isdigit() else 0)


def _run_folder(path: Path) -> Path:
    """The run's folder: the one named ``seed=<n>`` above the file, else the one that holds the file."""
    return next((parent for parent in path.parents if parent.name.startswith("seed=")), path.parent)
