"""How much an imagined rollout counts, by the verdicts that a filter would cut it for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kalm.core.errors import DataError
from kalm.data.filters import RolloutFilter, rollout_verdicts
from kalm.store.reader import RolloutStore

# What a rollout is that does not pass the filter of the same meaning.
_FAILS = {"implausible": RolloutFilter.plausible, "missed": RolloutFilter.success}


def check_verdict_weights(weights: Mapping[str, float], rollout_filter: RolloutFilter) -> None:
    """Refuse weights that are malformed, or of rollouts that the filter cuts anyway.

    Raises:
        DataError: The message names what is allowed.
    """
    for name, weight in weights.items():
        if name not in _FAILS:
            raise DataError(f"verdict_weights has {name!r}; a rollout can be {' or '.join(_FAILS)}")
        if not weight >= 0:
            raise DataError(f"verdict_weights: {name} is {weight}; it must be 0 or more, 1 being the weight of others")
        if rollout_filter in (_FAILS[name], RolloutFilter.both):
            raise DataError(
                f"verdict_weights weigh rollouts that are {name}, but filter: {rollout_filter.name} cuts them; use "
                "filter: none to weigh them, or leave them out of verdict_weights"
            )


def rollout_weights(real: RolloutStore, imagined: Sequence[RolloutStore], weights: Mapping[str, float]) -> Tensor:
    """Weight of every rollout of all stores lined up, float32: 1 unless it was imagined and fails a verdict.

    A rollout that fails both verdicts counts with the product.
    """
    return torch.cat([torch.ones(real.num_rollouts), *(_of_store(store, weights) for store in imagined)])


def _of_store(store: RolloutStore, weights: Mapping[str, float]) -> Tensor:
    total, passes = torch.ones(store.num_rollouts), rollout_verdicts(store)
    for name, weight in weights.items():
        total = torch.where(passes[_FAILS[name]], total, total * weight)
    return total
