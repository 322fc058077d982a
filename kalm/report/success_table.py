"""Success rates: what imagined rollouts bought, by algorithm and goal split (KALM, figures 4 and 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kalm.report.intervals import Interval, Outcomes, difference_interval, success_interval
from kalm.report.paper import CQL_NOVEL, NOVEL_SPLITS
from kalm.report.results import EpisodeRow, splits_of
from kalm.report.table import EMPTY, Table

_NOVEL = "novel"  # column of a mean over splits


@dataclass(frozen=True)
class ReportRow:
    """One row of the success tables: which runs, and what it is called.

    Attributes:
        experiment: ``<domain>/<stage>/<name>``, all its seeds.
        baseline: Experiment that the row is compared with, as a rule the same without imagined rollouts.
        replications: Experiments that repeat it with all that came before its policies, such as grounding and
            imagination by other seeds. The row is then the mean over all of them, and its interval says how far another
            grounding may come out; that of a row without them speaks of its one grounding alone.
        line: Name of the curve that it is a point of, if the study has curves.
        at: Where it stands on the curve.
    """

    experiment: str
    label: str
    baseline: str | None = None
    replications: tuple[str, ...] = ()
    line: str | None = None
    at: float | None = None

    @property
    def experiments(self) -> tuple[str, ...]:
        """The experiment and its replications."""
        return (self.experiment, *self.replications)

    def owns(self, row: EpisodeRow) -> bool:
        """Whether an episode belongs to this row."""
        return row.experiment in self.experiments


@dataclass(frozen=True)
class Rate:
    """Success of a row over its units: its seeds, or its replications if it has any.

    Attributes:
        outcomes: What each unit made of each episode.
        num_seeds: Seeds of a replication, at most.
        num_replications: Experiments; 1 without replications.
        num_episodes: Episodes of all runs together.
    """

    outcomes: Outcomes
    num_seeds: int
    num_replications: int
    num_episodes: int

    @property
    def mean(self) -> float:
        """Mean over units of the share of successful episodes, in [0, 1]."""
        return float(self.outcomes.rates.mean())

    @property
    def std(self) -> float | None:
        """Sample standard deviation over units (n - 1 in the denominator); None for a single one."""
        return float(np.std(self.outcomes.rates, ddof=1)) if len(self.outcomes.units) > 1 else None

    @cached_property
    def interval(self) -> Interval:
        """95 % interval of the mean, see ``kalm.report.intervals``."""
        return success_interval([self.outcomes])

    def __str__(self) -> str:
        """In percent: mean, spread over units, interval."""
        return f"{self.without_interval()} ({100 * self.interval[0]:.1f}-{100 * self.interval[1]:.1f})"

    def without_interval(self) -> str:
        """In percent: mean and spread over units."""
        return f"{100 * self.mean:.1f}" + ("" if self.std is None else f" ± {100 * self.std:.1f}")


def success_rate(rows: Sequence[EpisodeRow]) -> Rate | None:
    """Success of one row of a report on one split; None without episodes."""
    if not rows:
        return None
    experiments = {row.experiment for row in rows}
    num_seeds = max(len({row.seed for row in rows if row.experiment == experiment}) for experiment in experiments)
    return Rate(Outcomes.of(rows), num_seeds, len(experiments), num_episodes=len(rows))


def rates_by_split(rows: Sequence[EpisodeRow], report_row: ReportRow) -> dict[str, Rate]:
    """Success of one row of a report on each split that it was evaluated on."""
    own = [row for row in rows if report_row.owns(row)]
    rates = {split: success_rate([row for row in own if row.goal_split == split]) for split in splits_of(own)}
    return {split: rate for split, rate in rates.items() if rate is not None}


def success_table(
    rows: Sequence[EpisodeRow], report_rows: Sequence[ReportRow], title: str = "", show_interval: bool = True
) -> Table:
    """One line a row, one column a goal split; after a row with a baseline, the difference in points.

    Intervals hold for episodes of one checkpoint of each run only: several checkpoints of a run try the same episodes.
    """
    splits = splits_of(rows)
    has_novel = set(NOVEL_SPLITS) <= set(splits)
    rates = {report_row.experiment: rates_by_split(rows, report_row) for report_row in report_rows}
    columns = {split: (split,) for split in splits} | ({_NOVEL: NOVEL_SPLITS} if has_novel else {})
    cells = []
    for report_row in report_rows:
        own = rates[report_row.experiment]
        shown = {split: str(rate) if show_interval else rate.without_interval() for split, rate in own.items()}
        if has_novel and set(NOVEL_SPLITS) <= own.keys():
            shown[_NOVEL] = _novel([own[split] for split in NOVEL_SPLITS], show_interval)
        cells.append((report_row.label, _counts(own), *(shown.get(column, EMPTY) for column in columns)))
        if report_row.baseline in rates:
            other = rates[report_row.baseline]
            points = (_difference(own, other, of_column, show_interval) for of_column in columns.values())
            cells.append(("  difference", "", *points))
    title, note = title or "Success by goal split, last checkpoint", _note(rows, report_rows, has_novel, show_interval)
    return Table(title, ("policy", "seeds", *columns), tuple(cells), note)


def task_table(rows: Sequence[EpisodeRow], report_rows: Sequence[ReportRow]) -> Table:
    """Success by task, one column a row, and a macro-average row for every split."""
    rows = [row for row in rows if any(report_row.owns(row) for report_row in report_rows)]
    cells = []
    for split in splits_of(rows):
        of_split = [row for row in rows if row.goal_split == split]
        tasks = sorted({row.task for row in of_split})
        means: dict[str, list[float]] = {report_row.experiment: [] for report_row in report_rows}
        for task in tasks:
            line = []
            for report_row in report_rows:
                rate = success_rate([row for row in of_split if row.task == task and report_row.owns(row)])
                line.append(EMPTY if rate is None else f"{100 * rate.mean:.1f} ({rate.num_episodes})")
                if rate is not None:
                    means[report_row.experiment].append(rate.mean)
            cells.append((f"{split}: {task}", *line))
        macro = [means[report_row.experiment] for report_row in report_rows]
        if len(tasks) > 1:
            shown = (f"{100 * np.mean(rates):.1f}" if rates else EMPTY for rates in macro)
            cells.append((f"{split}: mean of {len(tasks)} tasks", *shown))
    header = ("task", *(report_row.label for report_row in report_rows))
    return Table("Success by task, last checkpoint", header, tuple(cells), "Percent; episodes in brackets.")


def _counts(rates: Mapping[str, Rate]) -> str:
    """Seeds, with replications before them as in ``3 x 2``: 3 replications of 2 seeds each."""
    seeds = max((rate.num_seeds for rate in rates.values()), default=0)
    replications = max((rate.num_replications for rate in rates.values()), default=1)
    return str(seeds) if replications == 1 else f"{replications} x {seeds}"


def _novel(rates: Sequence[Rate], show_interval: bool) -> str:
    """The unweighted mean over the novel splits, the paper's "novel goals"."""
    mean = f"{100 * np.mean([rate.mean for rate in rates]):.1f}"
    if not show_interval:
        return mean
    low, high = success_interval([rate.outcomes for rate in rates])
    return f"{mean} ({100 * low:.1f}-{100 * high:.1f})"


def _difference(own: Mapping[str, Rate], other: Mapping[str, Rate], splits: Sequence[str], show_interval: bool) -> str:
    """What a row has more than another, as the mean over splits, in the episodes that both ran."""
    pairs = []
    for split in splits:
        pair = own[split].outcomes.in_common(other[split].outcomes) if split in own and split in other else None
        if pair is None:
            return EMPTY
        pairs.append(pair)
    points = f"{100 * np.mean([ours.rates.mean() - theirs.rates.mean() for ours, theirs in pairs]):+.1f}"
    if not show_interval:
        return points
    low, high = difference_interval(pairs)
    return f"{points} ({100 * low:+.1f} to {100 * high:+.1f})"


def _note(rows: Sequence[EpisodeRow], report_rows: Sequence[ReportRow], has_novel: bool, show_interval: bool) -> str:
    stages = " and ".join(sorted({row.stage for row in rows})) or "none"
    interval = " (95 % interval, bootstrap over seeds and episodes together)" if show_interval else ""
    note = f"Percent of episodes: mean ± standard deviation over seeds{interval}. Stage: {stages}."
    if any(report_row.replications for report_row in report_rows):
        note += " a x b seeds: a replications, over which mean, deviation and interval are then taken, of b seeds each."
    if any(report_row.baseline for report_row in report_rows):
        note += " difference: in points, in the same episodes; beyond chance where its interval leaves out 0."
    if has_novel:
        note += f" novel: mean of {', '.join(NOVEL_SPLITS)}."
        if all(row.experiment.startswith("clevr_robot/") for row in rows):
            note += f" The paper's CQL has {CQL_NOVEL[0]} without and {CQL_NOVEL[1]} with imagined rollouts."
    return note
