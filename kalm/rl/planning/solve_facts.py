"""What is said of a store of plans: how it was made, who judged, and figures by kind of goal beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kalm.judging.judge import Judge
from kalm.rl.planning.planner import Planner, PlanSettings
from kalm.runs.folder import SOLVED_FILE
from kalm.store.labels import Labels
from kalm.store.reader import RolloutStore


def read_statistics(folder: str | Path) -> dict[str, Any]:
    """What ``solve_store`` wrote beside a store of plans: who judged, how it was solved, figures by kind of goal."""
    return dict(json.loads((Path(folder) / SOLVED_FILE).read_bytes()))


def solver_facts(solver: Planner) -> dict[str, Any]:
    """Name and constants of what solves, as plain JSON types."""
    return {"name": type(solver).__name__, **{key: _plain(value) for key, value in vars(solver).items()}}


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


def solve_provenance(
    store: RolloutStore,
    label: str,
    labels: Labels,
    solver: Planner,
    settings: PlanSettings,
    judge: Judge | None,
) -> dict[str, Any]:
    """What decides the plans, and who said when a goal is met."""
    judges = [dict(labels.provenance), *([judge.provenance] if judge is not None else [])]
    return {
        "verb": "solve",
        "store_manifest_sha256": store.manifest_sha256,
        "label": label,
        "judge": judges[0],
        "judge_of_predicted_states": judges[1] if judge is not None else None,
        "is_oracle": any(bool(said.get("is_oracle", False)) for said in judges),
        "solver": solver_facts(solver),
        **asdict(settings),
    }


def by_kind(figures: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figures of each kind of goal, over all pairs of a goal and a part in which it is met somewhere."""
    kinds: dict[str, dict[str, Any]] = {}
    for task in sorted({row["task"] for row in figures}):
        rows = [row for row in figures if row["task"] == task]
        met = [row for row in rows if row["num_goal_states"]]
        num_plans = sum(row["num_plans"] for row in met)
        kinds[task] = {
            "num_pairs": len(rows),
            "num_pairs_met": len(met),
            "solvable_share": float(np.mean([row["solvable"] for row in met])) if met else 0.0,
            "solvable_share_at_start": float(np.mean([row["solvable_at_start"] for row in met])) if met else 0.0,
            "num_plans": num_plans,
            "mean_length": sum(row["num_steps"] for row in met) / num_plans if num_plans else 0.0,
        }
    return kinds
