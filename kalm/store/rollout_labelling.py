"""Labels of whole rollouts: a judge is asked, of every rollout of a finished store, whether it meets its own goal.

Every store comes with what the domain's rule says of its rollouts. A judge who does not know the rule (a language model
that explains a rollout, or contrasts its instruction with others) says so in a label of its own, and whoever learns
from the rollouts chooses by the one or the other (``data.imagined.label``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kalm.core.errors import DataError
from kalm.envs.base import Domain
from kalm.judging.judge import DOMAIN_RULE, Judge
from kalm.store.labels import LABEL_MANIFEST, ROLLOUT, Labels, LabelWriter, label_folder
from kalm.store.reader import RolloutStore

ROLLOUTS_PER_SHARD = 1000


@dataclass(frozen=True)
class Agreement:
    """How a judge's verdicts on rollouts compare with those of the domain's rule, the truth here.

    Attributes:
        num_rollouts: All that were judged.
        share_met: Of them, those that the judge calls met, in [0, 1].
        precision: Of those that it calls met, the share that the rule does, too; NaN if there are none.
        recall: Of those that meet their goal by the rule, the share that it finds; NaN if there are none.
        share_true: Share of all that meet their goal by the rule: the precision of taking all.
    """

    num_rollouts: int
    share_met: float
    precision: float
    recall: float
    share_true: float


def label_rollouts(
    domain: Domain, store: RolloutStore, judge: Judge, name: str = "", show_progress: bool = True
) -> Labels:
    """Label a store's rollouts, or go on with a label that was interrupted, or open one that is there.

    Raises:
        DataError: If the name is taken by a label that was made otherwise, or that the store came with.
    """
    name = name or judge.name
    if name in (DOMAIN_RULE, *store.plausibility_flags):
        raise DataError(f"name is {name!r}, a label that {store.path} came with; give this one another name")
    made_by = {"verb": "label", "about": "rollouts"}
    path = store.path / label_folder(name) / LABEL_MANIFEST
    if path.is_file():
        found = json.loads(path.read_bytes())
        if found["provenance"] != {**judge.provenance, **made_by}:
            raise DataError(f"{path.parent} is a label made otherwise; give this one another name, or delete it")
        return store.labels(name)
    writer = LabelWriter(store, judge, ROLLOUT, made_by, name=name)
    columns = (TextColumn("label"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not show_progress) as progress:
        bar = progress.add_task("label", total=store.num_rollouts)
        for first in range(0, store.num_rollouts, ROLLOUTS_PER_SHARD):
            shard, rows = f"{first:09d}", range(first, min(first + ROLLOUTS_PER_SHARD, store.num_rollouts))
            if shard not in writer.finished_shards:
                rollouts = [store.rollout(row) for row in rows]
                goals = [domain.goal_from_json(made.goal) if made.goal else None for made in rollouts]
                writer.append(shard, judge.judge(goals, rollouts))
            progress.advance(bar, len(rows))
    return writer.finish()


def agreement_by_split(store: RolloutStore, labels: Labels) -> dict[str, Agreement]:
    """What a label of rollouts says of each goal split, beside the domain's rule."""
    said, truth = labels.met.numpy(), store.is_success.numpy()
    found = {}
    for split in dict.fromkeys(store.goal_splits.tolist()):
        own = store.goal_splits == split
        num_right = int((said & truth & own).sum())
        found[split] = Agreement(
            int(own.sum()),
            float(said[own].mean()),
            num_right / num if (num := int((said & own).sum())) else np.nan,
            num_right / num if (num := int((truth & own).sum())) else np.nan,
            float(truth[own].mean()),
        )
    return found
