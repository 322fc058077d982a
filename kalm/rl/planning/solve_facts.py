"""What is said of a store of plans: how it was made, who judged, and figures by kind of goal beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kalm.core.errors import require
from kalm.judging.judge import Judge
from kalm.rl.planning.completion import MAX_CONFIGURATIONS
from kalm.rl.planning.empirical_graph import GRID
from kalm.rl.planning.hindsight import Hindsight
from kalm.rl.planning.solvers import Solver
from kalm.runs.folder import SOLVED_FILE
from kalm.store.labels import Labels
from kalm.store.reader import RolloutStore


@dataclass(frozen=True)
class PlanSettings:
    """How plans are made out of solutions.

    Attributes:
        num_plans: Starts for each goal in each part, drawn among the states from which the goal can be reached; all of
            them where there are fewer. Of hindsight: rollouts, out of all that were recorded.
        start_share: Share of them where an agent may set out at test time, as far as the data tell: in the
            configurations in which recorded rollouts begin; the others may be anywhere. Hindsight has no choice.
        max_length: Steps; longer plans are left out.
        is_completed: Whether the graph is completed by a local model of the dynamics that is learned from the store.
        max_configurations: Predicted for each part, at most, where the graph is completed.
        part_key: In the provenance of the recorded rollouts: equal values, equal part. Where it is absent, rollouts
            that share a state belong together.
        seed: Decides starts, and which of several best actions is taken.
    """

    num_plans: int = 8
    start_share: float = 0.5
    max_length: int = 500
    is_completed: bool = False
    max_configurations: int = MAX_CONFIGURATIONS
    part_key: str = GRID
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        require(self.num_plans >= 1, "num_plans", self.num_plans, "at least 1")
        require(0 <= self.start_share <= 1, "start_share", self.start_share, "in [0, 1]")
        require(self.max_configurations >= 0, "max_configurations", self.max_configurations, "at least 0")
        require(self.max_length >= 1, "max_length", self.max_length, "at least 1")
        require(self.seed >= 0, "seed", self.seed, "at least 0")


def read_statistics(folder: str | Path) -> dict[str, Any]:
    """What ``solve_store`` wrote beside a store of plans: who judged, how it was solved, figures by kind of goal."""
    return dict(json.loads((Path(folder) / SOLVED_FILE).read_bytes()))


def solver_facts(solver: Solver | Hindsight) -> dict[str, Any]:
    """Name and constants of a solver, as plain JSON types."""
    return {"name": type(solver).__name__, **{key: _plain(value) for key, value in vars(solver).items()}}


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


def solve_provenance(
    store: RolloutStore,
    label: str,
    labels: Labels,
    solver: Solver | Hindsight,
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
