"""Success against what a study turned up step by step: amount of data, number of goals, share of random rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kalm.report.results import EpisodeRow, splits_of
from kalm.report.success_table import Rate, ReportRow, success_rate
from kalm.report.table import EMPTY, Table

Point = tuple[float, Rate, float]  # where it stands, success there, and mean length in steps


def curves(rows: Sequence[EpisodeRow], report_rows: Sequence[ReportRow], split: str) -> dict[str, list[Point]]:
    """The points of each line on one goal split, in the order of where they stand; none without an episode."""
    found: dict[str, list[Point]] = {}
    for report_row in report_rows:
        if report_row.line is None or report_row.at is None:
            continue
        own = [row for row in rows if row.experiment == report_row.experiment and row.goal_split == split]
        points, rate = found.setdefault(report_row.line, []), success_rate(own)
        if rate is not None:
            points.append((report_row.at, rate, float(np.mean([row.num_steps for row in own]))))
    return {line: sorted(points, key=lambda point: point[0]) for line, points in found.items()}


def curve_table(rows: Sequence[EpisodeRow], report_rows: Sequence[ReportRow], quantity: str) -> Table | None:
    """One row a split and place, and for each line success and length; None where the rows are points of no line."""
    wanted = {report_row.experiment for report_row in report_rows if report_row.line is not None}
    rows = [row for row in rows if row.experiment in wanted]
    if not rows:
        return None
    lines = list(dict.fromkeys(report_row.line for report_row in report_rows if report_row.line is not None))
    cells = []
    for split in splits_of(rows):
        of_line = {line: {at: (rate, length) for at, rate, length in points}
                   for line, points in curves(rows, report_rows, split).items()}  # fmt: skip
        for at in sorted({at for points in of_line.values() for at in points}):
            shown = []
            for line in lines:
                rate, length = of_line[line].get(at, (None, None))
                shown += [EMPTY if rate is None else str(rate), EMPTY if length is None else f"{length:.0f}"]
            cells.append((split, f"{at:g}", *shown))
    header = ("goals", quantity, *(column for line in lines for column in (line, "length")))
    note = "Percent of episodes: mean ± standard deviation over seeds (Wilson 95 % interval of all episodes pooled)."
    return Table(f"Success by {quantity}", header, tuple(cells), f"{note} Length in steps.")
