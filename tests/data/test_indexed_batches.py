"""Batches by index: order, where a pass begins, and that the loader hands them on untouched."""

from __future__ import annotations

from itertools import islice

import torch
from tensordict import TensorDict

from kalm.data.training_data import IndexedBatches


def test_a_pass_counts_from_its_start_to_its_stop() -> None:
    """3, 4, 5; without a stop there is no end."""
    assert list(IndexedBatches(lambda index: index, start=lambda: 3, stop=6)) == [3, 4, 5]
    assert list(islice(IndexedBatches(lambda index: index, start=lambda: 3), 5)) == [3, 4, 5, 6, 7]


def test_every_pass_asks_where_to_begin() -> None:
    """A second epoch goes on where the counter stands then, though one batch more was already fetched ahead."""
    used = [0]
    loader = IndexedBatches(lambda index: index, start=lambda: used[0]).dataloader()
    first = list(islice(loader, 4))
    used[0] += 3  # the fourth was fetched ahead and never used
    assert (first, list(islice(loader, 2))) == ([0, 1, 2, 3], [3, 4])


def test_the_loader_hands_on_the_very_object() -> None:
    """No conversion, no copy."""
    batch = TensorDict({"x": torch.zeros(2)}, batch_size=[2])
    loader = IndexedBatches(lambda index: batch, start=lambda: 0, stop=1).dataloader()
    assert next(iter(loader)) is batch
