"""The report's pictures, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kalm.report.curves import curves
from kalm.report.intervals import Outcomes
from kalm.report.results import (
    EXPLANATION_METRICS,
    STEP_METRICS,
    EpisodeRow,
    MetricLog,
    imagined_splits,
    in_order,
    splits_of,
)
from kalm.report.rollout_tables import MatchRate
from kalm.report.success_table import ReportRow, rates_by_split

_PERCENT = (-2.0, 102.0)  # room for lines that run along 0 and 100
_PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def plot_success_bars(rows: Sequence[EpisodeRow], report_rows: Sequence[ReportRow], path: Path) -> Path:
    """Success by goal split, one bar a row, whiskers at the interval; the baseline is the pale one."""
    colors = _pair_colors(report_rows)
    baselines = {report_row.baseline for report_row in report_rows}
    bars = []
    for row in report_rows:
        percents = {
            split: (100 * rate.mean, 100 * rate.interval[0], 100 * rate.interval[1])
            for split, rate in rates_by_split(rows, row).items()
        }
        alpha = 0.45 if row.experiment in baselines else 1.0
        bars.append(_Bars(row.label, percents, colors[row.experiment], alpha))
    return _plot_bars(bars, splits_of(rows), "success %", "Success by goal split", path)


def plot_success_curves(
    rows: Sequence[EpisodeRow], report_rows: Sequence[ReportRow], quantity: str, path: Path
) -> Path:
    """Success against what the points of each line differ in: one panel a goal split, whiskers at the interval."""
    splits = splits_of(rows)
    figure, panels = _figure(len(splits))
    for axes, split in zip(panels, splits, strict=True):
        for color, (line, points) in zip(itertools.cycle(_PALETTE), curves(rows, report_rows, split).items()):
            percent = [100 * rate.mean for _, rate, _ in points]
            ends = [(100 * rate.interval[0], 100 * rate.interval[1]) for _, rate, _ in points]
            whiskers = [
                [max(0.0, p - low) for p, (low, _) in zip(percent, ends, strict=True)],
                [max(0.0, high - p) for p, (_, high) in zip(percent, ends, strict=True)],
            ]
            places = [at for at, _, _ in points]
            axes.errorbar(places, percent, whiskers, color=color, marker=".", capsize=2, label=_plain(line))
        axes.set_title(split)
        axes.set_xlabel(quantity)
        axes.set_ylim(*_PERCENT)
    panels[0].set_ylabel("success %")
    _legend(panels[-1])
    figure.savefig(path, format="png")
    return path


def plot_match_bars(rates: Mapping[str, Mapping[str, MatchRate]], path: Path) -> Path:
    """Imagined rollouts that meet their goal, by label and split: one bar a label, whiskers at the interval."""
    splits = in_order(split for of_split in rates.values() for split in of_split)
    bars = []
    for color, (label, of_split) in zip(itertools.cycle(_PALETTE), rates.items(), strict=False):
        bars.append(_Bars(label, {split: (rate.percent, *rate.interval) for split, rate in of_split.items()}, color))
    return _plot_bars(bars, splits, "meet their goal %", "Imagined rollouts by goal split", path)


def plot_training_curves(rows: Sequence[EpisodeRow], report_rows: Sequence[ReportRow], path: Path) -> Path:
    """Success during policy training, one panel a goal split: mean over seeds, band from lowest to highest seed."""
    rows = [row for row in rows if row.stage == "validate"]
    splits = splits_of(rows)
    figure, panels = _figure(len(splits))
    colors = _pair_colors(report_rows)
    baselines = {report_row.baseline for report_row in report_rows}
    for axes, split in zip(panels, splits, strict=True):
        for report_row in report_rows:
            own = [row for row in rows if report_row.owns(row) and row.goal_split == split]
            updates = sorted({row.update for row in own})
            if not updates:
                continue
            of_seed = [100 * Outcomes.of([row for row in own if row.update == update]).rates for update in updates]
            color, style = colors[report_row.experiment], "--" if report_row.experiment in baselines else "-"
            means, lows, highs = ([float(end(rates)) for rates in of_seed] for end in (np.mean, np.min, np.max))
            axes.plot(updates, means, style, color=color, marker=".", label=_plain(report_row.label))
            axes.fill_between(updates, lows, highs, color=color, alpha=0.15)
        axes.set_title(split)
        axes.set_xlabel("updates")
        axes.set_ylim(*_PERCENT)
    panels[0].set_ylabel("success %")
    _legend(panels[-1])
    figure.savefig(path, format="png")
    return path


def plot_grounding_curves(logs: Sequence[MetricLog], path: Path) -> Path:
    """Explanation accuracy, and one-step action and state match of imagined rollouts, while the LLM is grounded."""
    panels_of: dict[str, dict[str, str]] = {"explanation accuracy": EXPLANATION_METRICS}
    for metric in STEP_METRICS:
        name = f"imagined {metric.replace('_', ' ')}"
        panels_of[name] = {f"imagine/{split}/{metric}": split for split in imagined_splits(logs)}
    figure, panels = _figure(len(panels_of))
    for axes, (title, metrics) in zip(panels, panels_of.items(), strict=True):
        for color, (metric, label) in zip(_PALETTE, metrics.items(), strict=False):
            for log, style in zip(logs, ("-", "--", ":", "-.") * len(logs), strict=False):
                updates, values = log.curve(metric)
                if updates:
                    name = label if len(logs) == 1 else f"{label}: {log.name}"
                    axes.plot(updates, [100 * v for v in values], style, color=color, marker=".", label=_plain(name))
        axes.set_title(title)
        axes.set_xlabel("updates")
        axes.set_ylim(*_PERCENT)
        _legend(axes)
    panels[0].set_ylabel("%")
    figure.savefig(path, format="png")
    return path


@dataclass(frozen=True)
class _Bars:
    """One bar a goal split: percentages with the low and the high end of their whiskers."""

    label: str
    percents: Mapping[str, tuple[float, float, float]]
    color: str
    alpha: float = 1.0


def _plot_bars(series: Sequence[_Bars], splits: Sequence[str], quantity: str, title: str, path: Path) -> Path:
    figure, (axes,) = _figure(1, width=max(6.0, 1.2 + 0.5 * len(splits) * len(series)))
    width = 0.8 / max(1, len(series))
    for number, bars in enumerate(series):
        present = [position for position, split in enumerate(splits) if split in bars.percents]
        places = [position - 0.4 + (number + 0.5) * width for position in present]
        shown = [bars.percents[splits[position]] for position in present]
        # The mean need not lie within an interval of percentiles: no whisker has a negative length.
        whiskers = [[max(0.0, p - low) for p, low, _ in shown], [max(0.0, high - p) for p, _, high in shown]]
        look: dict[str, Any] = {"color": bars.color, "alpha": bars.alpha, "label": _plain(bars.label)}
        axes.bar(places, [percent for percent, _, _ in shown], width, yerr=whiskers, capsize=2, **look)
    axes.set_xticks(range(len(splits)), splits)
    axes.set_ylabel(quantity)
    axes.set_ylim(0, 100)
    axes.set_title(title)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, format="png")
    return path


def _figure(num_panels: int, width: float | None = None) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width or max(5.0, 3.6 * num_panels), 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, num_panels, sharey=True, squeeze=False)[0]
    return figure, list(panels)


def _pair_colors(report_rows: Sequence[ReportRow]) -> dict[str, str]:
    """One colour a pair of row and baseline."""
    colors: dict[str, str] = {}
    for report_row in report_rows:
        known = colors.get(report_row.experiment) or colors.get(report_row.baseline or "")
        color = known or _PALETTE[len(set(colors.values())) % len(_PALETTE)]
        colors[report_row.experiment] = color
        if report_row.baseline:
            colors[report_row.baseline] = color
    return colors


def _plain(text: str) -> str:
    """Keep matplotlib from reading dollar signs as mathematics, and a leading underscore as "hide from the legend"."""
    return text.replace("$", r"\$").lstrip("_")


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)
