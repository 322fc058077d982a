"""What the updates of a training step recorded: stacked, looked at for what is not finite, averaged for the log.

Looking costs nothing while all is well: sums are checked, and only what is not finite is traced to its cause.

Shape letters: K updates a training step, S policies side by side, B batch, T steps of a window where a batch has some.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from kalm.core.errors import DataError
from kalm.core.names import ACTION, NEXT_OBSERVATION, OBSERVATION, REWARD, ROLLOUT_ID, SOURCE, STEP, Source

_FIELDS = (OBSERVATION, ACTION, REWARD, NEXT_OBSERVATION)


def stack_recorded(rows: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stack what each of K updates recorded by name, tensors of shape (B,) or (B, T).

    Returns:
        The stacks, shape (K, ...), with zeros where an update recorded nothing of that name; and, for the names that
        some update left out, which updates did not, shape (K,).
    """
    stacks: dict[str, Tensor] = {}
    is_recorded: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        there = [row.get(name) for row in rows]
        zeros = torch.zeros_like(next(values for values in there if values is not None))
        stacks[name] = torch.stack([zeros if values is None else values for values in there])
        if any(values is None for values in there):
            is_recorded[name] = torch.tensor([values is not None for values in there], device=zeros.device)
    return stacks, is_recorded


@torch.no_grad()
def source_means(
    per_transition: Mapping[str, Tensor],
    source: Tensor,
    padding_mask: Tensor | None = None,
    is_recorded: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Mean of each quantity over all transitions, and over those of each source that is there.

    Quantities, sources and the mask, True = real step, have shape (K, B) or (K, B, T). For names that not every update
    recorded ``is_recorded`` says which did, shape (K,). Neither padding nor the other updates count.
    """
    if padding_mask is None:
        padding_mask = torch.ones_like(source, dtype=torch.bool)
    is_recorded = is_recorded or {}
    means = _means(per_transition, "train", padding_mask, is_recorded)
    for member in Source:
        chosen = (source == int(member)) & padding_mask
        if chosen.any():
            means |= _means(per_transition, f"train/{member.label}", chosen, is_recorded)
    return means


def _means(
    per_transition: Mapping[str, Tensor], prefix: str, chosen: Tensor, is_recorded: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    weight = chosen / chosen.sum()
    means = {
        f"{prefix}/{name}": (values * weight).sum()
        for name, values in per_transition.items()
        if name not in is_recorded
    }
    for name, updates in is_recorded.items():
        counted = chosen[updates]
        if counted.any():
            means[f"{prefix}/{name}"] = (per_transition[name][updates] * counted).sum() / counted.sum()
    return means


@torch.no_grad()
def is_finite(per_transition: Mapping[str, Tensor], parameters: Iterable[Tensor]) -> bool:
    """Whether all losses are finite, and all parameters, which a gradient that is not would have spoilt."""
    norm = nn.utils.get_total_norm(parameters)
    return bool(torch.stack([norm, *(values.sum() for values in per_transition.values())]).isfinite().all())


def raise_non_finite(
    per_transition: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    batch: TensorDictBase,
    first_update: int,
    seeds: Sequence[int],
) -> NoReturn:
    """Name what is not finite: a field of the data, else a loss, else the parameters that a gradient spoilt.

    Losses, (K, B) or (K, B, T), are those of ``batch``, before which ``first_update`` updates were made. For several
    seeds a row of it is S rows of theirs and parameters are stacks of theirs, (S, ...); the seed is named.

    Raises:
        DataError: Always.
    """
    bad_loss = _bad_loss(per_transition, batch, seeds, first_update)
    cause = _bad_field(batch, seeds) or bad_loss or _bad_parameter(parameters, seeds)
    raise DataError(
        f"training stopped after update {first_update}, before anything was saved: {cause}. Losses, gradients and data "
        "must be finite. Rebuild a store with bad values; else lower learning_rate or set gradient_clip_norm"
    )


def _transition(batch: TensorDictBase, seeds: Sequence[int], bad: Tensor) -> str:
    """Name the first marked transition."""
    place = tuple(bad.nonzero()[0].tolist())
    source = Source(int(batch.get(SOURCE)[place])).label
    rollout, step = int(batch.get(ROLLOUT_ID)[place]), int(batch.get(STEP)[place])
    return f"rollout {rollout}, step {step} ({source}){_policy(seeds, place[1] * len(seeds) // bad.shape[1])}"


def _policy(seeds: Sequence[int], number: int) -> str:
    return f", policy of seed {seeds[number]}" if len(seeds) > 1 else ""


def _bad_field(batch: TensorDictBase, seeds: Sequence[int]) -> str | None:
    for key in _FIELDS:
        value = batch.get(key)
        bad = ~torch.isfinite(value).reshape(*batch.shape, -1).all(-1)
        if bad.any():
            name = key if isinstance(key, str) else " ".join(key)
            return f"{name} is not finite in {_transition(batch, seeds, bad)}"
    return None


def _bad_loss(
    per_transition: Mapping[str, Tensor], batch: TensorDictBase, seeds: Sequence[int], first_update: int
) -> str | None:
    # Later updates inherit what an earlier one spoilt, so the first bad update is the one to name.
    bad_of = {name: ~torch.isfinite(values) for name, values in per_transition.items()}
    firsts = {name: int(bad.nonzero()[0, 0]) for name, bad in bad_of.items() if bad.any()}
    if not firsts:
        return None
    name = min(firsts, key=lambda key: firsts[key])
    update, bad = firsts[name], bad_of[name]
    value = float(per_transition[name][bad][0])
    return f"{name} is {value} at update {first_update + update + 1}, first for {_transition(batch, seeds, bad)}"


def _bad_parameter(parameters: Mapping[str, Tensor], seeds: Sequence[int]) -> str:
    bad = [name for name, value in parameters.items() if not torch.isfinite(value).all()]
    if not bad:
        return "the sum of all losses overflowed"
    is_bad = ~torch.isfinite(parameters[bad[0]])
    return f"the gradient of {bad[0]} was not finite{_policy(seeds, int(is_bad.nonzero()[0, 0]) if is_bad.ndim else 0)}"
