"""TEDUO's first two steps in tables: how good proxy rewards are (table B.4), and what could be solved."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kalm.report.paper import PROXY_SCORES
from kalm.report.results import find_files, folder_name
from kalm.report.table import EMPTY, Table
from kalm.runs.folder import PROXY_FILE, SOLVED_FILE

_FIGURES = ("auc", "accuracy", "precision", "recall")


def proxy_table(folders: Sequence[Path], roots: Sequence[Path]) -> Table | None:
    """A row for each proxy, task and kind of goals, against the truth; the paper's goals below; None without any."""
    cells, tasks, judges = [], dict[str, None](), dict[str, None]()
    for name, content in _contents(folders, roots, PROXY_FILE):
        judges[json.dumps(content.get("labels_by", {}), sort_keys=True)] = None
        for row in content["rows"]:
            tasks[row["task"]] = None
            what = f"{row['task']}, {row['goals'].replace('_', ' ')} goals against the {row['against']}"
            cells.append((f"{name}: {what}", str(row["num_goals"]), str(row["num_met"]), *_shown(row)))
    for task in tasks:
        for row in PROXY_SCORES.get(task, ()):
            cells.append((f"paper: {row['goal']}", "1", EMPTY, *_shown(row)))
    if not cells:
        return None
    header = ("proxy reward", "goals", "states that meet", "AUC", "accuracy", "precision", "recall")
    note = f"Percent but for the area under the curve, on states that were not learned. Labels by {', '.join(judges)}."
    return Table("Proxy rewards", header, tuple(cells), note)


def solved_table(folders: Sequence[Path], roots: Sequence[Path]) -> Table | None:
    """A row for each run of ``solve`` and task, and one for all tasks of a run; None without any."""
    cells, oracles = [], []
    for name, content in _contents(folders, roots, SOLVED_FILE):
        if content["is_oracle"]:
            oracles.append(name)
        kinds = content["kinds"]
        for task, row in {**kinds, **({"all tasks": _of_all(kinds.values())} if len(kinds) > 1 else {})}.items():
            shares = f"{row['num_pairs_met']} of {row['num_pairs']}", f"{100 * row['solvable_share']:.1f}"
            cells.append((f"{name}: {task}", *shares, str(row["num_plans"]), f"{row['mean_length']:.1f}"))
    if not cells:
        return None
    header = ("solved", "goals met, a goal and grid", "solvable from, % of states", "plans", "mean length")
    note = f"The domain's own rule, the oracle, judged in {', '.join(oracles)}." if oracles else ""
    return Table("Solved goals", header, tuple(cells), note)


def _of_all(kinds: Collection[Mapping[str, Any]]) -> dict[str, float]:
    """Figures of several tasks as if they were one: a mean over pairs that are met, and one over plans."""
    names = ("num_pairs", "num_pairs_met", "num_plans")
    all_of = {name: sum(row[name] for row in kinds) for name in names}
    means = {"solvable_share": "num_pairs_met", "mean_length": "num_plans"}
    return all_of | {
        name: sum(row[name] * row[count] for row in kinds) / max(1, all_of[count]) for name, count in means.items()
    }


def _contents(folders: Sequence[Path], roots: Sequence[Path], file: str) -> list[tuple[str, Mapping[str, Any]]]:
    paths = find_files(folders, file)
    return [(folder_name(path.parent, roots), json.loads(path.read_text(encoding="utf-8"))) for path in paths]


def _shown(row: Mapping[str, Any]) -> list[str]:
    auc, *others = (row[figure] for figure in _FIGURES)
    percent = [EMPTY if number is None else f"{number:.1f}" for number in others]
    return [EMPTY if auc is None else f"{auc:.3f}", *percent]
