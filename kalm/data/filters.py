"""Which rollouts of a store are used: by their verdicts, and how many passed each.

Imagined stores keep every well-formed rollout with its verdicts; the choice is made where they are read, so that one
act of imagination serves every choice (the paper uses all rollouts; which choice is best is for an experiment to say).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from kalm.core.errors import DataError
from kalm.store.reader import RolloutStore


class RolloutFilter(Enum):
    """What a rollout must be to be used; the names are what a YAML file says.

    ``none``: nothing, as in the paper. ``plausible``: no transition is marked by any of the domain's flags.
    ``success``: it meets its goal by the domain's own rule. ``both``: plausible and success.
    """

    none = "none"
    plausible = "plausible"
    success = "success"
    both = "both"


def select_rollouts(
    store: RolloutStore,
    rollout_filter: RolloutFilter,
    max_rollouts: int | None = None,
    goal_splits: Collection[str] | None = None,
) -> Tensor:
    """Rows of the rollouts to use, in the order of the store.

    Args:
        store: Where they lie.
        rollout_filter: What they must be.
        max_rollouts: Keep the first so many of those that pass; None keeps all.
        goal_splits: Keep these splits only; None keeps all.

    Returns:
        Rows of ``store.rollouts``, int64 of shape (rollouts kept,); empty if none passes.

    Raises:
        DataError: If the store has no rollout of one of ``goal_splits``, or ``max_rollouts`` is not positive.
    """
    if max_rollouts is not None and max_rollouts < 1:
        raise DataError(f"max_rollouts is {max_rollouts}; give 1 or more, or null for all rollouts of {store.path}")
    keep = rollout_verdicts(store)[rollout_filter]
    if goal_splits is not None:
        present = dict.fromkeys(store.goal_splits.tolist())
        missing = [wanted for wanted in goal_splits if wanted not in present]
        if missing or not goal_splits:
            raise DataError(
                f"rollout store {store.path} has no rollout of the goal splits {', '.join(missing) or '(none named)'}; "
                f"it has {', '.join(present)}"
            )
        keep = keep & torch.from_numpy(np.isin(store.goal_splits, list(goal_splits)))
    return keep.nonzero().squeeze(-1)[:max_rollouts]


def select_imagined_rollouts(stores: Sequence[RolloutStore], rollout_filter: RolloutFilter) -> list[Tensor]:
    """Rows of the rollouts to use of each store of imagined ones, as ``select_rollouts`` gives them.

    Raises:
        DataError: If no rollout of any of them passes, with what there is.
    """
    kept = [select_rollouts(store, rollout_filter) for store in stores]
    if stores and not any(len(rows) for rows in kept):
        counts = "\n  ".join(f"{store.path}: {verdict_counts(store)}" for store in stores)
        raise DataError(
            f"no imagined rollout passes filter: {rollout_filter.name}; what there is:\n  {counts}\n"
            f"Allowed filters are {', '.join(f.name for f in RolloutFilter)}; or ground the model longer, "
            "imagine more, or leave imagined empty to train on real rollouts only"
        )
    return kept


def verdict_counts(store: RolloutStore) -> dict[str, dict[str, int]]:
    """Counts of each goal split that the store has.

    Returns:
        Goal split -> ``num_rollouts``; ``plausible``, ``success`` and ``both``: rollouts that pass that filter;
        ``num_transitions``; and under each plausibility flag's name the transitions it marks.
    """
    verdicts = rollout_verdicts(store)
    counts = {}
    for split in dict.fromkeys(store.goal_splits.tolist()):
        chosen = torch.from_numpy(store.goal_splits == split)
        counts[split] = {
            "num_rollouts": int(chosen.sum()),
            **{f.name: int((verdicts[f] & chosen).sum()) for f in RolloutFilter if f is not RolloutFilter.none},
            "num_transitions": int(store.rollouts["length"][chosen].sum()),
            **{flag: int(store.rollouts["violations", flag][chosen].sum()) for flag in store.plausibility_flags},
        }
    return counts


def rollout_verdicts(store: RolloutStore) -> dict[RolloutFilter, Tensor]:
    """For each filter, which rollouts pass, bool of shape (R,)."""
    success = store.rollouts["is_success"]
    plausible = torch.ones_like(success)
    for flag in store.plausibility_flags:
        plausible = plausible & (store.rollouts["violations", flag] == 0)
    return {
        RolloutFilter.none: torch.ones_like(success),
        RolloutFilter.plausible: plausible,
        RolloutFilter.success: success.clone(),
        RolloutFilter.both: plausible & success,
    }
