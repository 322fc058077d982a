"""How often a labeller is right, by kind of goal (TEDUO, table B.5): its verdicts on states beside the rule's."""

from __future__ import annotations

import numpy as np
from rich.table import Table

from kalm.core.errors import DataError
from kalm.envs.base import Domain
from kalm.rl.rewards.scores import scores
from kalm.store.labels import Labels
from kalm.store.reader import RolloutStore

_FIGURES = ("accuracy", "precision", "recall")


def labeller_scores(domain: Domain, store: RolloutStore, labels: Labels) -> dict[str, dict[str, float | None]]:
    """What a label of goals and states says of each task, beside the rule, sorted by the task's name.

    Returns:
        For each task what ``rl.rewards.scores`` says of the answered questions, how many there were
        (``num_states``), and ``num_abstained``. Recall is of the answered ones that are met.

    Raises:
        DataError: If the label is about rollouts.
    """
    if labels.goal is None or labels.state is None:
        raise DataError("the label is about rollouts; kinds of goals are compared for labels of goals and states")
    met, score, abstained = (column.numpy() for column in (labels.met, labels.score, labels.abstained))
    goal_of_row, truth = labels.goal.numpy(), np.zeros(len(labels), dtype=np.bool_)
    tasks = np.zeros(len(labels), dtype=object)
    for number, row in enumerate(labels.goals):
        own, goal = goal_of_row == number, domain.goal_from_json(row["goal"])
        tasks[own] = goal.task
        truth[own] = goal.success(store.observations(labels.state[own].long()))
    found: dict[str, dict[str, float | None]] = {}
    for task in sorted(set(tasks.tolist())):
        own = tasks == task
        answered = own & ~abstained
        num_abstained = int((own & abstained).sum())
        found[task] = {**scores(score[answered], met[answered], truth[answered]), "num_abstained": num_abstained}
    return found


def labeller_table(domain: Domain, store: RolloutStore, labels: Labels) -> Table:
    """The same for a terminal; figures in per cent, a dash where there is none."""
    table = Table("task", "answered", "in doubt", "met, by the rule", "AUC", *_FIGURES)
    for task, row in labeller_scores(domain, store, labels).items():
        area = "-" if row["auc"] is None else f"{row['auc']:.2f}"
        figures = ("-" if row[name] is None else f"{row[name]:.1f}" for name in _FIGURES)
        table.add_row(task, *(f"{row[key]:,}" for key in ("num_states", "num_abstained", "num_met")), area, *figures)
    return table
