"""Put the report together: find what the stages left, make tables and plots, write report.md and report.html."""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import kalm
from kalm.core.errors import DataError
from kalm.core.names import Source
from kalm.core.provenance import git_commit
from kalm.report.behaviour_table import behaviour_table
from kalm.report.curves import curve_table
from kalm.report.paper import Cell
from kalm.report.plots import (
    plot_grounding_curves,
    plot_match_bars,
    plot_success_bars,
    plot_success_curves,
    plot_training_curves,
)
from kalm.report.results import (
    EpisodeRow,
    MetricLog,
    final_stage,
    grounding_table,
    last_evaluations,
    last_update,
    load_metrics,
    load_results,
)
from kalm.report.rollout_tables import (
    MatchRate,
    StoreVerdicts,
    TaskVerdicts,
    comparison_table,
    imagination_table,
    load_task_verdicts,
    load_verdicts,
    match_rates,
    plausibility_table,
    task_verdict_table,
)
from kalm.report.study import (
    belongs_to_study,
    compared_imagination,
    curve_quantity,
    experiment_seeds,
    reported_behaviour,
    study_folders,
    study_rows,
)
from kalm.report.success_table import ReportRow, success_table, task_table
from kalm.report.table import Table, escape_markdown, html_page
from kalm.report.teduo_tables import proxy_table, solved_table
from kalm.runs.folder import METRICS_FILE, RESULTS_FILE
from kalm.store.layout import MANIFEST


@dataclass(frozen=True)
class ReportPaths:
    """A written report: all tables, the same with the plots inside, the plots, and what it lacks in sentences."""

    markdown: Path
    page: Path
    plots: tuple[Path, ...]
    missing: tuple[str, ...]


def write_report(
    folders: Sequence[str | Path],
    output: str | Path,
    study: Mapping[str, Any] | None = None,
    durations: Mapping[str, float] | None = None,
    num_last_evaluations: int = 5,
    console: Console | None = None,
) -> ReportPaths:
    """Write tables and plots of everything below some folders; what is not there yet is named, not invented.

    Args:
        folders: A root such as ``checkpoints``, or single run folders.
        output: Folder for report.md, report.html and the plots; made when absent.
        study: A study file as a mapping. Its ``report: {rows: [{experiment, label, baseline, replications}]}`` says
            which experiments to show, in which order, against what and repeated by which, its ``report: {paper:
            skills}`` which table of TEDUO's stands below them in place of the main one. Rows with ``line`` and ``at``
            are points of curves, which differ in what ``report: {curve: number of goals}`` says; its seeds and stages
            say what a complete report holds. Without it every experiment found is a row of its own.
        durations: Stage name -> seconds, printed at the end.
        num_last_evaluations: How many of the last evaluations the "mean of the last" table averages (the paper: 5).
        console: Where to print the main table and the report's place; None prints nothing.

    Raises:
        DataError: If a folder does not exist, holds nothing to report, or a results file is malformed.
    """
    searched, output = [Path(folder) for folder in folders], Path(output)
    absent = [str(folder) for folder in searched if not folder.is_dir()]
    if absent or not searched:
        raise DataError(
            f"no such folder to report on: {', '.join(absent) or '(none given)'}; give the root that runs write to "
            "(checkpoints by default) or run folders below it"
        )
    results = load_results(searched)
    of_study = study_folders(study) or searched
    verdicts, problems = load_verdicts(of_study, searched)
    logs = load_metrics(of_study, searched)
    if not (results or verdicts or logs):
        held = sorted({path.name for folder in searched for path in folder.iterdir()})
        raise DataError(
            f"nothing to report below {', '.join(map(str, searched))}: no {RESULTS_FILE}, {METRICS_FILE} with "
            f"grounding metrics or rollout store's {MANIFEST}; found there: {', '.join(held) or 'nothing'}. Run a "
            "stage first, for example: python -m kalm run conf/study/clevr_robot_demo.yaml"
        )
    rows = study_rows(study, results)
    results = [row for row in results if belongs_to_study(row, study, rows)]
    compared, tasks = match_rates(verdicts, compared_imagination(study)), load_task_verdicts(of_study, searched)
    steps = [table for table in (proxy_table(of_study, searched), solved_table(of_study, searched)) if table]
    found = _Found(
        results, rows, verdicts, compared, tasks, logs, steps, reported_behaviour(study), curve_quantity(study)
    )
    missing = _missing(study, found) + problems
    tables = _tables(found, num_last_evaluations)
    output.mkdir(parents=True, exist_ok=True)
    plots = _plots(found, output)
    provenance = _provenance_lines(last_update(found.results), study, durations)
    title = f"Report: {study['name']}" if study and study.get("name") else "Report"
    paths = ReportPaths(output / "report.md", output / "report.html", tuple(plots), tuple(missing))
    paths.markdown.write_text(_markdown(title, tables, plots, missing, provenance), encoding="utf-8")
    paths.page.write_text(html_page(title, tables, plots, missing, provenance), encoding="utf-8")
    if console is not None:
        _print(console, tables, paths, searched, of_study)
    return paths


@dataclass(frozen=True)
class _Found:
    """What the stages left, and which of it to show."""

    results: Sequence[EpisodeRow]
    rows: Sequence[ReportRow]
    verdicts: Sequence[StoreVerdicts]
    compared: Mapping[str, Mapping[str, MatchRate]]
    tasks: Sequence[TaskVerdicts]
    logs: Sequence[MetricLog]
    steps: Sequence[Table]  # of labelling and solving
    reported: Mapping[str, Mapping[str, Cell]] | None  # of the paper, in place of its main table
    quantity: str  # that the points of curves differ in

    @property
    def has_imagined(self) -> bool:
        return any(store.source != Source.REAL.label for store in self.verdicts)


def _missing(study: Mapping[str, Any] | None, found: _Found) -> list[str]:
    """One sentence for each thing that a complete report would have."""
    missing = []
    instead = "left out, for others were" if final_stage(found.results) == "test" else "its last validation is shown"
    for experiment in (name for report_row in found.rows for name in report_row.experiments):
        seeds = experiment_seeds(study, experiment)
        own = [row for row in found.results if row.experiment == experiment]
        evaluated = {row.seed for row in own}
        tested = {row.seed for row in own if row.stage == "test"}
        for seed in sorted({*seeds, *evaluated}):
            if seed not in evaluated:
                missing.append(f"{experiment}, seed {seed}: no episodes; it was not trained or not evaluated")
            elif seed not in tested:
                missing.append(f"{experiment}, seed {seed}: not tested yet; {instead}")
        if not own and not seeds:
            missing.append(f"{experiment}: no episodes; it was not trained or not evaluated")
    if not found.results:
        missing.append(f"success rates: no {RESULTS_FILE} of the rows asked for")
    if not found.has_imagined:
        missing.append("imagined rollouts: no rollout store with imagined rollouts")
    missing += [f"{label}: no imagined rollouts" for label, of_split in found.compared.items() if not of_split]
    if not found.logs and not found.steps:  # nothing was grounded where a judge's labels were solved
        missing.append(f"grounding: no {METRICS_FILE} with explain/ or imagine/ metrics")
    return missing


def _tables(found: _Found, num_last_evaluations: int) -> list[Table]:
    tables = []
    if found.results:
        final = last_update(found.results)
        tables.append(success_table(final, found.rows))
        averaged = [row for rows in last_evaluations(found.results, num_last_evaluations) for row in rows]
        if averaged and num_last_evaluations > 1:
            title = f"Success by goal split, mean of the last {num_last_evaluations} evaluations (the paper's number)"
            tables.append(success_table(averaged, found.rows, title, show_interval=False))
        if behaviour := behaviour_table(final, found.rows, found.reported):
            tables.append(behaviour)
        if table := curve_table(final, found.rows, found.quantity):
            tables.append(table)
        tables.append(task_table(final, found.rows))
    if found.compared:
        tables.append(comparison_table(found.compared))
    if found.has_imagined:
        tables.append(imagination_table(found.verdicts))
    if found.tasks:
        tables.append(task_verdict_table(found.tasks))
    if found.verdicts:
        tables.append(plausibility_table(found.verdicts))
    if found.logs:
        tables.append(grounding_table(found.logs))
    return [*tables, *found.steps]


def _plots(found: _Found, output: Path) -> list[Path]:
    plots = []
    if found.results:
        final = last_update(found.results)
        plots.append(plot_success_bars(final, found.rows, output / "success.png"))
        if any(row.line is not None for row in found.rows):
            plots.append(plot_success_curves(final, found.rows, found.quantity, output / "curves.png"))
    if any(row.stage == "validate" for row in found.results):
        plots.append(plot_training_curves(found.results, found.rows, output / "training.png"))
    if any(found.compared.values()):
        plots.append(plot_match_bars(found.compared, output / "imagined.png"))
    if found.logs:
        plots.append(plot_grounding_curves(found.logs, output / "grounding.png"))
    return plots


def _markdown(
    title: str, tables: Sequence[Table], plots: Sequence[Path], missing: Sequence[str], provenance: Sequence[str]
) -> str:
    parts = [f"# {escape_markdown(title)}\n"]
    if missing:
        parts.append("**Missing:**\n\n" + "\n".join(f"- {escape_markdown(sentence)}" for sentence in missing) + "\n")
    parts += [table.to_markdown() for table in tables]
    parts += [f"![{path.stem}]({path.name})\n" for path in plots]
    lines = "\n".join(f"    {line}" for line in provenance)  # an indented block shows any text as it is
    parts.append(f"## How these numbers were made\n\n{lines}\n")
    return "\n".join(parts)


def _print(
    console: Console, tables: Sequence[Table], paths: ReportPaths, roots: Sequence[Path], folders: Sequence[Path]
) -> None:
    """Show the main table, what is missing, and where the rest is."""
    if tables:
        console.print(tables[0].to_rich(), crop=False)
        console.print(tables[0].note, markup=False, highlight=False)
    for sentence in paths.missing:
        console.print(f"missing: {sentence}", style="yellow", markup=False)
    lines = [f"all tables: {paths.markdown}", f"with plots: {paths.page}", *(f"plot: {plot}" for plot in paths.plots)]
    videos = sorted({video.parent for folder in folders for video in folder.rglob("videos/*.gif")})
    if videos:
        lines.append(f"videos: {videos[0]} and {len(videos) - 1} more folders like it")
    for line in (*lines, f"curves and videos of every run: tensorboard --logdir {roots[0]}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _provenance_lines(
    rows: Sequence[EpisodeRow], study: Mapping[str, Any] | None, durations: Mapping[str, float] | None
) -> list[str]:
    """Everything about how the numbers were made, one fact a line; a stage that runs once a seed keeps ``${seed}``."""
    lines = []
    for stage in (study or {}).get("stages", []):
        lines.append(f"command: python -m kalm {shlex.join(map(str, stage.get('command', [])))}")
    for experiment in sorted({row.experiment for row in rows}):
        own = [row for row in rows if row.experiment == experiment]
        algorithms = ", ".join(sorted({row.algorithm for row in own}))
        seeds = ", ".join(str(seed) for seed in sorted({row.seed for row in own}))
        updates = ", ".join(str(update) for update in sorted({row.update for row in own}))
        lines.append(f"run: {experiment} ({algorithms}): seeds {seeds}; evaluated at update {updates}")
    lines.append(f"kalm: {kalm.__version__}, commit {git_commit(Path(kalm.__file__).parent)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    lines.append(f"machine: {system}, {cores} cores, {_cpu_model()}")
    spent = {**(durations or {}), **({"all stages": sum(durations.values())} if durations else {})}
    return [*lines, *(f"duration: {what}: {_minutes(seconds)}" for what, seconds in spent.items())]


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    found = re.search(r"^model name\s*:\s*(.+?)\s*$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or "unknown processor"


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
