"""Success rates: what imagined rollouts bought, by algorithm and goal split (KALM, figures 4 and 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kalm.envs.evaluation import wilson_interval
from kalm.report.paper import CQL_NOVEL, NOVEL_SPLITS
from kalm.report.results import EpisodeRow, splits_of
from kalm.report.table import EMPTY, Table


@dataclass(frozen=True)
class ReportRow:
    """One row of the success tables.

    Attributes:
        experiment: Which runs: ``<domain>/<stage>/<name>``, all its seeds.
        label: What the row is called.
        baseline: Experiment that the row is compared with, as a rule the same without imagined rollouts.
    """

    experiment: str
    label: str
    baseline: str | None = None


@dataclass(frozen=True)
class Rate:
    """Success over some seeds.

    Attributes:
        mean: Mean over seeds of the share of successful episodes, in [0, 1].
        std: Sample standard deviation over seeds (n - 1 in the denominator); None for a single seed.
        interval: Wilson 95 % interval of the episodes of all seeds pooled.
        num_seeds: Seeds that went in.
        num_episodes: Episodes that went in, all seeds together.
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
    outcomes: dict[int, list[bool]] = {}
    for row in rows:
        outcomes.setdefault(row.seed, []).append(row.is_success)
    if not outcomes:
        return None
    of_seed = [float(np.mean(successes)) for successes in outcomes.values()]
    return Rate(
        mean=float(np.mean(of_seed)),
        std=float(np.std(of_seed, ddof=1)) if len(of_seed) > 1 else None,
        interval=wilson_interval(sum(map(sum, outcomes.values())), sum(map(len, outcomes.values()))),
        num_seeds=len(of_seed),
        num_episodes=sum(map(len, outcomes.values())),
    )


def rates_by_split(rows: Sequence[EpisodeRow], experiment: str) -> dict[str, Rate]:
    """Success of one experiment on each split that it was evaluated on."""
    own = [row for row in rows if row.experiment == experiment]
    rates = {split: success_rate([row for row in own if row.goal_split == split]) for split in splits_of(own)}
    return {split: rate for split, rate in rates.items() if rate is not None}


def success_table(
    rows: Sequence[EpisodeRow], report_rows: Sequence[ReportRow], title: str = "", show_interval: bool = True
) -> Table:
    """One row an experiment, one column a goal split; after a row with a baseline, the difference in points.

    Args:
        rows: Episodes of one checkpoint of each run, or of several to average over.
        report_rows: Which experiments, in which order.
        title: Heading of the table.
        show_interval: Whether to show Wilson intervals. They hold for one checkpoint only: several checkpoints of a run
            try the same episodes, which would count as new evidence each time.
    """
    splits = splits_of(rows)
    has_novel = set(NOVEL_SPLITS) <= set(splits)
    rates = {report_row.experiment: rates_by_split(rows, report_row.experiment) for report_row in report_rows}
    cells = []
    for report_row in report_rows:
        own = rates[report_row.experiment]
        seeds = max((rate.num_seeds for rate in own.values()), default=0)
        novel = _novel_mean(own)
        cells.append(
            (
                report_row.label,
                str(seeds),
                *(_cell(own.get(split), show_interval) for split in splits),
                *([EMPTY if novel is None else f"{100 * novel:.1f}"] if has_novel else []),
            )
        )
        if report_row.baseline in rates:
            other = rates[report_row.baseline]
            novels = (novel, _novel_mean(other))
            cells.append(
                (
                    "  difference",
                    "",
                    *(_points(own[s].mean, other[s].mean) if s in own and s in other else EMPTY for s in splits),
                    *([_points(*novels)] if has_novel else []),
                )
            )
    header = ("policy", "seeds", *splits, *(["novel"] if has_novel else []))
    return Table(
        title or "Success by goal split, last checkpoint", header, tuple(cells), _note(rows, has_novel, show_interval)
    )


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


def _cell(rate: Rate | None, show_interval: bool) -> str:
    if rate is None:
        return EMPTY
    return str(rate) if show_interval else rate.without_interval()


def _points(own: float | None, other: float | None) -> str:
    return EMPTY if own is None or other is None else f"{100 * (own - other):+.1f}"


def _novel_mean(rates: dict[str, Rate]) -> float | None:
    """Unweighted mean over the three novel splits, the paper's "novel goals"."""
    return float(np.mean([rates[s].mean for s in NOVEL_SPLITS])) if set(NOVEL_SPLITS) <= set(rates) else None


def _note(rows: Sequence[EpisodeRow], has_novel: bool, show_interval: bool) -> str:
    stages = " and ".join(sorted({row.stage for row in rows})) or "none"
    interval = " (Wilson 95 % interval of all episodes pooled)" if show_interval else ""
    note = f"Percent of episodes: mean ± standard deviation over seeds{interval}. Stage: {stages}."
    if has_novel:
        note += f" novel: mean of {', '.join(NOVEL_SPLITS)}."
        if all(row.experiment.startswith("clevr_robot/") for row in rows):
            note += f" The paper's CQL has {CQL_NOVEL[0]} without and {CQL_NOVEL[1]} with imagined rollouts."
    return note
