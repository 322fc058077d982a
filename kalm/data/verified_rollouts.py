"""Which imagined rollouts a model may learn from: those that hold up, and for kinds of goals with few, the next best.

It is rejection sampling with the domain's own rules as the judge, as in STaR (Zelikman et al. 2022, arXiv:2203.14465)
and ReST (Gulcehre et al. 2023, arXiv:2308.08998). KALM imagines once and grounds no further.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kalm.core import names
from kalm.data.filters import RolloutFilter, rollout_verdicts
from kalm.data.top_returns import rollout_returns
from kalm.envs.base import Domain
from kalm.store.reader import RolloutStore

# Which rollouts may stand in where few pass a filter: all that it asks for but success.
_WITHOUT_SUCCESS = {RolloutFilter.both: RolloutFilter.plausible, RolloutFilter.success: RolloutFilter.none}


def verified_rollouts(
    domain: Domain, stores: Sequence[RolloutStore], rollout_filter: RolloutFilter, num_least: int = 0
) -> list[Tensor]:
    """Choose from stores of imagined rollouts.

    Args:
        domain: Says which task a goal belongs to.
        stores: Their rollouts compete with each other.
        rollout_filter: What a rollout must be.
        num_least: Rollouts that each task should have. Where fewer pass, the rollouts of the highest return join
            that pass all of the filter but success; only such that earned something, and of equal ones the first.

    Returns:
        For each store, rows of ``store.rollouts``, int64, ascending.
    """
    verdicts = [rollout_verdicts(store) for store in stores]
    chosen = torch.cat([verdict[rollout_filter] for verdict in verdicts])
    if num_least and rollout_filter in _WITHOUT_SUCCESS:
        returns = torch.cat([rollout_returns(store, discount=1.0) for store in stores])
        may_join = torch.cat([verdict[_WITHOUT_SUCCESS[rollout_filter]] for verdict in verdicts]) & (returns > 0)
        tasks = [task for store in stores for task in rollout_tasks(domain, store)]
        for task in dict.fromkeys(tasks):
            of_task = torch.tensor([other == task for other in tasks])
            num_missing = max(0, num_least - int((chosen & of_task).sum()))
            candidates = (may_join & of_task & ~chosen).nonzero().squeeze(-1)
            best = returns[candidates].argsort(descending=True, stable=True)[:num_missing]
            chosen[candidates[best]] = True
    return [part.nonzero().squeeze(-1) for part in chosen.split([store.num_rollouts for store in stores])]


def rollout_tasks(domain: Domain, store: RolloutStore) -> list[str]:
    """The task of each rollout's goal, in the order of the store."""
    tasks = [domain.goal_from_json(row.goal).task for row in store.instructions]
    return [tasks[instruction] for instruction in store.rollouts[names.INSTRUCTION_ID].tolist()]
