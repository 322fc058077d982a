"""Training batches that are a pure function of their index, which makes resuming exact and trivial."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from torch.utils.data import DataLoader, IterableDataset

Batch = TypeVar("Batch")


class IndexedBatches(IterableDataset[Batch], Generic[Batch]):
    """Yields ``batch(start)``, ``batch(start + 1)``, ... and asks for ``start`` anew on every pass.

    Nothing needs saving: batch i is the same whether the run came to it in one go, after a resume or in a second pass,
    so whoever knows how many batches were used (the trainer's step counter does) knows where to go on.
    """

    def __init__(self, batch: Callable[[int], Batch], start: Callable[[], int], stop: int | None = None) -> None:
        """Describe the batches; none is made yet.

        Args:
            batch: Makes a batch from its index; must depend on nothing that changes during training.
            start: Index of the first batch of a pass; called when the pass begins, so that a pass after a resume, or
                after an epoch, goes on behind the batches already used.
            stop: Index behind the last batch; None never stops.
        """
        self._batch = batch
        self._start = start
        self._stop = stop

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        index = self._start()
        while self._stop is None or index < self._stop:
            yield self._batch(index)
            index += 1

    def dataloader(self) -> DataLoader[Batch]:
        """A loader for Lightning that hands the batches on as they are, in the training process."""
        # Worker processes would copy each batch between processes, which costs more than making it.
        return DataLoader(self, batch_size=None, num_workers=0, collate_fn=_as_it_is)


def _as_it_is(batch: Batch) -> Batch:
    """Keep PyTorch's default conversion away: it takes a TensorDict for a mapping and rebuilds it."""
    return batch
