"""Finds out what went wrong once a loss or a gradient is no longer finite.

Looking costs nothing until then: the training step checks sums, and only calls this when they are not finite.

Shape letters: K updates a training step, B batch, T steps of a window where a batch has windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import torch
from tensordict import TensorDictBase
from torch import Tensor

from kalm.errors import DataError
from kalm.types import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, ROLLOUT_ID, SOURCE, STEP, Source

_FIELDS = (OBSERVATION, ACTION, REWARD, NEXT_OBSERVATION)


def raise_non_finite(
    per_transition: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    batch: TensorDictBase,
    first_update: int,
) -> NoReturn:
    """Name what is not finite: a field of the data, else a loss, else the parameters that a gradient spoilt.

    Args:
        per_transition: Losses and measurements by name, each of shape (K, B) or (K, B, T).
        parameters: All parameters by name.
        batch: The minibatches, of the same batch size.
        first_update: Updates made before this training step.

    Raises:
        DataError: Always.
    """
    cause = _bad_field(batch) or _bad_loss(per_transition, batch, first_update) or _bad_parameter(parameters)
    raise DataError(
        f"training stopped after update {first_update}, before anything was saved: {cause}. Losses, gradients and data "
        "must be finite. Rebuild a store with bad values; else lower learning_rate or set gradient_clip_norm"
    )


def _bad_field(batch: TensorDictBase) -> str | None:
    for key in _FIELDS:
        value = batch.get(key)
        bad = ~torch.isfinite(value).reshape(*batch.shape, -1).all(-1)
        if bad.any():
            name = key if isinstance(key, str) else " ".join(key)
            return f"{name} is not finite in {_first(bad, batch)}"
    return None


def _bad_loss(per_transition: Mapping[str, Tensor], batch: TensorDictBase, first_update: int) -> str | None:
    # Later updates inherit what an earlier one spoilt, so the first bad update is the one to name.
    bad_of = {name: ~torch.isfinite(values) for name, values in per_transition.items()}
    firsts = {name: int(bad.nonzero()[0, 0]) for name, bad in bad_of.items() if bad.any()}
    if not firsts:
        return None
    name = min(firsts, key=lambda key: firsts[key])
    update, bad = firsts[name], bad_of[name]
    value = float(per_transition[name][bad][0])
    return f"{name} is {value} at update {first_update + update + 1}, first for {_first(bad, batch)}"


def _bad_parameter(parameters: Mapping[str, Tensor]) -> str:
    names = [name for name, value in parameters.items() if not torch.isfinite(value).all()]
    return f"the gradient of {names[0]} was not finite" if names else "the sum of all losses overflowed"


def _first(bad: Tensor, batch: TensorDictBase) -> str:
    """Name the first marked transition."""
    place = tuple(bad.nonzero()[0].tolist())
    source = Source(int(batch.get(SOURCE)[place])).label
    return f"rollout {int(batch.get(ROLLOUT_ID)[place])}, step {int(batch.get(STEP)[place])} ({source})"
