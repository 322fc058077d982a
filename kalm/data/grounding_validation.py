"""What grounding is validated on, as a trainer takes it: real rollouts, goals to imagine rollouts for, text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from torch.utils.data import DataLoader, Dataset

from kalm.core.rollout import Rollout
from kalm.data.goal_starts import make_work_items
from kalm.data.grounding_batch import GeneralText
from kalm.data.work_item import WorkItem
from kalm.envs.base import Domain

# Validation is the same for every run, whatever its seed.
_VALIDATION_SEED = 0
_ROLLOUTS_A_BATCH = 128


class ValidationBatch(NamedTuple):
    """What is validated on at a time, mostly of one kind.

    Attributes:
        rollouts: Held-out real rollouts, to be predicted and explained.
        items: Goals to imagine rollouts for.
        text: Held-out text.
    """

    rollouts: Sequence[Rollout] = ()
    items: Sequence[WorkItem] = ()
    text: GeneralText = GeneralText()


def validation_loaders(
    domain: Domain,
    held_out: Sequence[Rollout],
    goal_splits: Sequence[str],
    num_imagined: int,
    texts: Sequence[GeneralText],
) -> list[DataLoader[ValidationBatch]]:
    """One loader a kind, of those that there are.

    Args:
        domain: Whose goals to imagine rollouts for.
        held_out: Real rollouts; imagination begins where they begin.
        goal_splits: Splits to imagine for.
        num_imagined: Rollouts a split to imagine; may be 0.
        texts: Batches of held-out text; may be none.
    """
    starts = np.stack([rollout.observations[0] for rollout in held_out])
    items = [
        item
        for split in goal_splits
        for item in make_work_items(
            domain,
            domain.instructed_goals(split),
            num_imagined,
            starts,
            (_VALIDATION_SEED, domain.goal_splits.index(split)),
        )
        if num_imagined
    ]
    loaders = [_loader(held_out, _ROLLOUTS_A_BATCH, lambda rollouts: ValidationBatch(rollouts=rollouts))]
    loaders += [_loader(items, _ROLLOUTS_A_BATCH, lambda items: ValidationBatch(items=items))] if items else []
    return loaders + ([_loader(texts, None, lambda text: ValidationBatch(text=text))] if texts else [])


def _loader(entries: Sequence[Any], batch_size: int | None, collate: Any) -> DataLoader[ValidationBatch]:
    # A list serves as a dataset; PyTorch's types only know its own class.
    dataset = cast("Dataset[Any]", entries)
    return DataLoader(dataset, batch_size=batch_size, shuffle=False, collate_fn=collate)
