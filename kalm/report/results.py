"""Read what runs have left: one line an episode (results.jsonl), and the metrics that they logged (metrics.csv).

The table of the grounded LLM at the end (KALM, figures 7 and 12) stands here as well.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kalm.core.errors import DataError
from kalm.report import paper
from kalm.report.table import EMPTY, Table
from kalm.runs.folder import METRICS_FILE, RESULTS_FILE

_PREFIXES = ("explain/", "imagine/")
EXPLANATION_METRICS = {
    "explain/seen_prompt_accuracy": "explanation, seen prompt",
    "explain/unseen_prompt_accuracy": "explanation, unseen prompt",
}
STEP_METRICS = ("action_match", "state_match")
_PAPER = {
    "explain/seen_prompt_accuracy": f"> {paper.EXPLANATION_ACCURACY:.0f}",
    "explain/unseen_prompt_accuracy": f"> {paper.EXPLANATION_ACCURACY:.0f}",
    "imagine/easy/action_match": f"about {paper.EASY_ACTION_MATCH:.0f}",
    "imagine/easy/state_match": f"about {paper.EASY_STATE_MATCH:.0f}",
}


@dataclass(frozen=True)
class EpisodeRow:
    """One evaluated episode, as the success-rate callback writes it."""

    experiment: str
    algorithm: str
    seed: int
    update: int
    stage: str
    goal_split: str
    task: str
    instruction: str
    episode_seed: int
    is_success: bool
    num_steps: int
    episode_return: float
    num_invalid: int | None = None  # actions that changed nothing; None where the world cannot tell


_FIELDS = {field.name: field.type for field in fields(EpisodeRow)}
_OPTIONAL = {"num_invalid"}
_TYPES: dict[str, tuple[type, ...]] = {
    **{"str": (str,), "int": (int,), "bool": (bool,), "float": (int, float)},
    "int | None": (int, type(None)),
}


def load_results(folders: Sequence[Path]) -> list[EpisodeRow]:
    """Read every results file at or below some folders; of an episode that was evaluated again the later line counts.

    Raises:
        DataError: If a line is malformed; every bad line of the file is named at once.
    """
    rows: dict[tuple[Any, ...], EpisodeRow] = {}
    for path in find_files(folders, RESULTS_FILE):
        for row in _read_file(path):
            key = (row.experiment, row.seed, row.update, row.stage, row.goal_split, row.instruction, row.episode_seed)
            rows[key] = row
    return list(rows.values())


def find_files(folders: Sequence[Path], name: str) -> list[Path]:
    """Every file called ``name`` at or below the folders, sorted, each once."""
    found = {path.resolve(): path for folder in folders for path in sorted(folder.rglob(name))}
    return [path for _, path in sorted(found.items())]


def last_update(rows: Iterable[EpisodeRow]) -> list[EpisodeRow]:
    """The rows of each run's last checkpoint: all of them tested or, if no run was tested yet, at the last validation.

    Validation and test are different episodes, and options are chosen on the one: they never stand in one table. Where
    some runs were tested, a run that was not has no rows here.
    """
    rows = list(rows)
    stage = final_stage(rows)
    last = []
    for run in _by_run(row for row in rows if row.stage == stage).values():
        update = max(row.update for row in run)
        last += [row for row in run if row.update == update]
    return last


def final_stage(rows: Iterable[EpisodeRow]) -> str:
    """The stage that the tables of the last checkpoint are of."""
    return "test" if any(row.stage == "test" for row in rows) else "validate"


def last_evaluations(rows: Iterable[EpisodeRow], num_evaluations: int) -> list[list[EpisodeRow]]:
    """Rows of each of the last evaluations in training, of every run that has that many: "mean of the last five"."""
    evaluations = []
    for run in _by_run(row for row in rows if row.stage == "validate").values():
        updates = sorted({row.update for row in run})
        if len(updates) >= num_evaluations:
            evaluations += [[row for row in run if row.update == update] for update in updates[-num_evaluations:]]
    return evaluations


def splits_of(rows: Iterable[EpisodeRow]) -> list[str]:
    """The goal splits that occur, in the order of a table."""
    return in_order(row.goal_split for row in rows)


def in_order(goal_splits: Iterable[str]) -> list[str]:
    """Each split once: the paper's in its order, then others as they come."""
    present = dict.fromkeys(goal_splits)
    known = [split for split in paper.GOAL_SPLITS if split in present]
    return [*known, *(split for split in present if split not in known)]


def _by_run(rows: Iterable[EpisodeRow]) -> dict[tuple[str, int], list[EpisodeRow]]:
    runs: dict[tuple[str, int], list[EpisodeRow]] = {}
    for row in rows:
        runs.setdefault((row.experiment, row.seed), []).append(row)
    return runs


def _read_file(path: Path) -> list[EpisodeRow]:
    # What follows the last newline is nothing, or the half line of a writer that is at work or was killed.
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    rows, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not JSON ({error.msg})")
            continue
        bad = _bad_fields(data)
        if bad:
            problems.append(f"line {number}: {'; '.join(bad)}")
        else:
            rows.append(EpisodeRow(**{name: data[name] for name in _FIELDS if name in data}))
    if problems:
        raise DataError(
            f"results file {path} is malformed:\n  " + "\n  ".join(problems) + "\n"
            f"Each line is one JSON object with {', '.join(_FIELDS)}, of which {', '.join(_OPTIONAL)} may be left out. "
            "Remove those lines, or run the evaluation again."
        )
    return rows


def _bad_fields(data: Any) -> list[str]:
    """Name every field that is missing or of the wrong type."""
    if not isinstance(data, dict):
        return [f"a {type(data).__name__} instead of an object"]
    bad = []
    for name, kind in _FIELDS.items():
        if name not in data:
            bad += [] if name in _OPTIONAL else [f"{name} is missing"]
        elif not isinstance(data[name], _TYPES[str(kind)]) or ("int" in str(kind) and isinstance(data[name], bool)):
            bad.append(f"{name} is {data[name]!r}, not {kind}")
    return bad


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


def load_metrics(folders: Sequence[Path], roots: Sequence[Path] | None = None) -> list[MetricLog]:
    """Read the metrics of grounding of every run that has any, named by its place below the roots or the folders."""
    files = find_files(folders, METRICS_FILE)
    logs = [MetricLog(folder_name(path.parent, roots or folders), _read_metrics(path)) for path in files]
    return [log for log in logs if log.values]


def folder_name(path: Path, roots: Sequence[Path]) -> str:
    """What to call a folder: its path below the first root that holds it, or else its own name."""
    path = path.resolve()
    for root in map(Path.resolve, roots):
        if root in path.parents:
            return path.relative_to(root).as_posix()
    return path.name


def _read_metrics(path: Path) -> dict[str, dict[int, float]]:
    values: dict[str, dict[int, float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            wanted = {name: text for name, text in row.items() if name and name.startswith(_PREFIXES) and text}
            for metric, text in wanted.items():
                if row.get("step") and math.isfinite(float(text)):
                    values.setdefault(metric, {})[int(row["step"])] = float(text)
    return values


def grounding_table(logs: Sequence[MetricLog]) -> Table:
    """The last logged value of every grounding metric: one row a metric, one column a run."""
    named = dict(EXPLANATION_METRICS)
    for split in imagined_splits(logs):
        for metric in ("success_rate", "plausible_rate", *STEP_METRICS):
            words = metric.removesuffix("_rate").replace("_", " ")
            named[f"imagine/{split}/{metric}"] = f"imagined {split}: {words}"
    cells = []
    for metric, label in named.items():
        shown = [EMPTY if value is None else f"{100 * value:.1f}" for value in (log.last(metric) for log in logs)]
        if set(shown) - {EMPTY}:
            cells.append((label, *shown, _PAPER.get(metric, EMPTY)))
    header = ("metric", *(log.name for log in logs), "paper")
    note = "Percent, at the last update at which it was measured, on the few rollouts that the callbacks imagine."
    return Table("Grounding", header, tuple(cells), note)


def imagined_splits(logs: Sequence[MetricLog]) -> list[str]:
    """Goal splits that any run imagined rollouts for, in the order of a table."""
    names = (name.split("/") for log in logs for name in log.values)
    return in_order(name[1] for name in names if name[0] == "imagine" and len(name) == 3)
