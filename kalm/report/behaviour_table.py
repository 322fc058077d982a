"""How policies behave: success, length of episodes and invalid actions by goal split, beside TEDUO's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kalm.report import paper
from kalm.report.results import EpisodeRow, splits_of
from kalm.report.success_table import ReportRow, success_rate
from kalm.report.table import EMPTY, Table

_NOTE = (
    "Percent of episodes: mean ± standard deviation over seeds (95 % interval, bootstrap over seeds and episodes); "
    "mean: over the tasks {kinds}. Length in steps, the limit where an episode failed. Invalid: percent of "
    "actions that change nothing. The paper's rows are of two test grids and one training run."
)


def behaviour_table(
    rows: Sequence[EpisodeRow],
    report_rows: Sequence[ReportRow],
    reported: Mapping[str, Mapping[str, paper.Cell]] | None = None,
) -> Table | None:
    """One row a policy and split, and the paper's below; None where no world told which actions are invalid.

    Args:
        rows: Episodes.
        report_rows: Which policies are shown.
        reported: The paper's numbers by method and split; by default those of its main table.
    """
    rows = [row for row in rows if row.num_invalid is not None and any(shown.owns(row) for shown in report_rows)]
    if not rows:
        return None
    splits, tasks = splits_of(rows), list(dict.fromkeys(row.task for row in rows))
    known = [task for task in paper.BEHAVIOUR_KINDS if task in tasks]
    tasks = [*known, *(task for task in tasks if task not in known)]
    kinds = known or tasks
    cells = []
    for split in splits:
        for report_row in report_rows:
            own = [row for row in rows if report_row.owns(row) and row.goal_split == split]
            if own:
                cells.append((report_row.label, split, *_measured(own, kinds, tasks)))
        for method, of_split in (_main_table(rows) if reported is None else reported).items():
            if split in of_split:
                cells.append((f"paper: {method}", split, *_reported(of_split[split], tasks)))
    header = ("policy", "goals", "success", "mean", "length", "invalid", *tasks)
    title = "Success, length and invalid actions, last checkpoint"
    return Table(title, header, tuple(cells), _NOTE.format(kinds=", ".join(kinds)))


def _measured(rows: Sequence[EpisodeRow], kinds: Sequence[str], tasks: Sequence[str]) -> list[str]:
    by_task = {task: success_rate([row for row in rows if row.task == task]) for task in tasks}
    of_kinds = [100 * rate.mean for kind in kinds if (rate := by_task[kind]) is not None]
    num_steps = sum(row.num_steps for row in rows)
    invalid = 100 * sum(row.num_invalid or 0 for row in rows) / num_steps
    length = float(np.mean([row.num_steps for row in rows]))
    mean = f"{np.mean(of_kinds):.1f}" if of_kinds else EMPTY
    shown = (EMPTY if rate is None else f"{100 * rate.mean:.1f}" for rate in by_task.values())
    return [str(success_rate(rows)), mean, f"{length:.0f}", f"{invalid:.1f}", *shown]


def _reported(cell: paper.Cell, tasks: Sequence[str]) -> list[str]:
    of_kinds = dict(zip(paper.BEHAVIOUR_KINDS, cell.of_kinds or (), strict=False))
    mean = f"{np.mean(cell.of_kinds):.1f}" if cell.of_kinds else EMPTY
    numbers = (cell.length, cell.invalid, *(of_kinds.get(task) for task in tasks))
    return [f"{cell.success:.0f}", mean, *(EMPTY if number is None else f"{number:.0f}" for number in numbers)]


def _main_table(rows: Sequence[EpisodeRow]) -> Mapping[str, Mapping[str, paper.Cell]]:
    """What the paper says of the one domain that the rows are of."""
    domains = {row.experiment.split("/")[0] for row in rows}
    return paper.BEHAVIOUR.get(domains.pop(), {}) if len(domains) == 1 else {}
