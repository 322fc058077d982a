"""Success rates: what imagined rollouts bought, by algorithm and goal split (KALM, figures 4 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kalm.envs.evaluation import wilson_interval
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
        line: Name of the curve that it is a point of, if the study has curves.
        at: Where it stands on the curve.
    """

    experiment: str
    label: str
    baseline: str | None = None
    line: str | None = None
    at: float | None = None


@dataclass(frozen=True)
class Rate:
    """Success over some seeds, in how many episodes of all of them together.

    Attributes:
        mean: Mean over seeds of the share of successful episodes, in [0, 1].
        std: Sample standard deviation over seeds (n - 1 in the denominator); None for a single seed.
        interval: Wilson 95 % interval of the episodes of all seeds pooled.
    """

    mean: float
    std: float | None
    interval: tuple[float, float]
    num_seeds: int
    num_episodes: int

    def __str__(self) -> str:
        """In percent: mean, spread over seeds, interval."""
        return f"{self.without_interval()} ({100 * self.interval[0]:.1f}-{100 * self.interval[1]:.1f})"

    def without_interval(self) -> str:
        """In percent: mean and spread over seeds."""
        return f"{100 * self.mean:.1f}" + ("" if self.std is None else f" ± {100 * self.std:.1f}")


def success_rate(rows: Sequence[EpisodeRow]) -> Rate | None:
    """Success of one experiment on one split: the mean over seeds; None without episodes."""
    if not rows:
        return None
    of_seed = seed_rates(rows)
    std = float(np.std(of_seed, ddof=1)) if len(of_seed) > 1 else None
    interval = wilson_interval(sum(row.is_success for row in rows), len(rows))
    return Rate(float(np.mean(of_seed)), std, interval, num_seeds=len(of_seed), num_episodes=len(rows))


def seed_rates(rows: Sequence[EpisodeRow]) -> list[float]:
    """Share of successful episodes of each seed, in [0, 1]."""
    outcomes: dict[int, list[bool]] = {}
    for row in rows:
        outcomes.setdefault(row.seed, []).append(row.is_success)
    return [float(np.mean(successes)) for successes in outcomes.values()]


def rates_by_split(rows: Sequence[EpisodeRow], experiment: str) -> dict[str, Rate]:
    """Success of one experiment on each split that it was evaluated on."""
    own = [row for row in rows if row.experiment == experiment]
    rates = {split: success_rate([row for row in own if row.goal_split == split]) for split in splits_of(own)}
    return {split: rate for split, rate in rates.items() if rate is not None}


def success_table(
    rows: Sequence[EpisodeRow], report_rows: Sequence[ReportRow], title: str = "", show_interval: bool = True
) -> Table:
    """One row an experiment, one column a goal split; after a row with a baseline, the difference in points.

    Wilson intervals hold for episodes of one checkpoint of each run only: several checkpoints of a run try the same
    episodes, which would count as new evidence each time.
    """
    splits = splits_of(rows)
    has_novel = set(NOVEL_SPLITS) <= set(splits)
    rates = {report_row.experiment: rates_by_split(rows, report_row.experiment) for report_row in report_rows}
    columns = [*splits, _NOVEL] if has_novel else splits
    cells = []
    for report_row in report_rows:
        own = rates[report_row.experiment]
        seeds = max((rate.num_seeds for rate in own.values()), default=0)
        shown = {split: str(rate) if show_interval else rate.without_interval() for split, rate in own.items()}
        means = _means(own)
        if _NOVEL in means:
            shown[_NOVEL] = f"{100 * means[_NOVEL]:.1f}"
        cells.append((report_row.label, str(seeds), *(shown.get(column, EMPTY) for column in columns)))
        if report_row.baseline in rates:
            others = _means(rates[report_row.baseline])
            points = {split: f"{100 * (means[split] - others[split]):+.1f}" for split in means.keys() & others.keys()}
            cells.append(("  difference", "", *(points.get(column, EMPTY) for column in columns)))
    title, note = title or "Success by goal split, last checkpoint", _note(rows, has_novel, show_interval)
    return Table(title, ("policy", "seeds", *columns), tuple(cells), note)


def task_table(rows: Sequence[EpisodeRow], report_rows: Sequence[ReportRow]) -> Table:
    """Success by task, one column an experiment, and a macro-average row for every split."""
    wanted = {report_row.experiment for report_row in report_rows}
    rows = [row for row in rows if row.experiment in wanted]
    cells = []
    for split in splits_of(rows):
        of_split = [row for row in rows if row.goal_split == split]
        tasks = sorted({row.task for row in of_split})
        means: dict[str, list[float]] = {experiment: [] for experiment in wanted}
        for task in tasks:
            line = []
            for report_row in report_rows:
                rate = success_rate([r for r in of_split if r.task == task and r.experiment == report_row.experiment])
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


def _means(rates: dict[str, Rate]) -> dict[str, float]:
    """By split, and the unweighted mean over the three novel splits, the paper's "novel goals", if all are there."""
    means = {split: rate.mean for split, rate in rates.items()}
    if set(NOVEL_SPLITS) <= means.keys():
        means[_NOVEL] = float(np.mean([means[split] for split in NOVEL_SPLITS]))
    return means


def _note(rows: Sequence[EpisodeRow], has_novel: bool, show_interval: bool) -> str:
    stages = " and ".join(sorted({row.stage for row in rows})) or "none"
    interval = " (Wilson 95 % interval of all episodes pooled)" if show_interval else ""
    note = f"Percent of episodes: mean ± standard deviation over seeds{interval}. Stage: {stages}."
    if has_novel:
        note += f" novel: mean of {', '.join(NOVEL_SPLITS)}."
        if all(row.experiment.startswith("clevr_robot/") for row in rows):
            note += f" The paper's CQL has {CQL_NOVEL[0]} without and {CQL_NOVEL[1]} with imagined rollouts."
    return note
