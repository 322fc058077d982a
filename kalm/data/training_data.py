"""What every data module that is trained on has in common: batches by their number, and going on with the same data."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar, cast

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from kalm.core.errors import CheckpointError, DataError
from kalm.core.provenance import changes
from kalm.data.rollout_sources import data_decisions

Batch = TypeVar("Batch")
_FOUND = "found"  # key of a state


class IndexedBatches(IterableDataset[Batch], Generic[Batch]):
    """Yields ``batch(start)``, ``batch(start + 1)``, ... and asks for ``start`` anew on every pass.

    Nothing needs saving: batch i is the same whether the run came to it in one go, after a resume or in a second pass,
    so whoever knows how many batches were used (the trainer's step counter does) knows where to go on.
    """

    def __init__(self, batch: Callable[[int], Batch], start: Callable[[], int], stop: int | None = None) -> None:
        """Describe the batches; none is made yet.

        Args:
            batch: Makes a batch from its index; must depend on nothing that changes during training.
            start: Index of the first batch of a pass; called when the pass begins.
            stop: Index behind the last batch; None never stops.
        """
        self._batch, self._start, self._stop = batch, start, stop

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        index = self._start()
        while self._stop is None or index < self._stop:
            yield self._batch(index)
            index += 1

    def dataloader(self) -> DataLoader[Batch]:
        """A loader for Lightning that hands the batches on as they are, in the training process."""
        # Worker processes would copy each batch between processes, which costs more than making it. PyTorch's default
        # conversion takes a TensorDict for a mapping and rebuilds it.
        return DataLoader(self, batch_size=None, num_workers=0, collate_fn=lambda batch: batch)


class TrainingData(LightningDataModule):
    """Something to learn from, a batch for each update."""

    # Constructor arguments that do not decide what is learned from; a resumed run may change them.
    undecided: ClassVar[frozenset[str]] = frozenset()
    # What to do, other than resuming, with a run whose data have changed.
    remedy: ClassVar[str] = "start afresh under another --experiment"

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """Remember what the data were described by; nothing is read yet.

        Args:
            arguments: ``locals()`` of the subclass's constructor, where it has just begun: all of its arguments.
        """
        super().__init__()
        self._arguments = {name: arguments[name] for name in inspect.signature(type(self)).parameters}

    @abstractmethod
    def batch(self, index: int) -> Any:
        """What is learned from at once, a pure function of seed and index; what only imagines learns from nothing."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches without end, going on behind those that the trainer has used."""
        return IndexedBatches(self.batch_of_device, start=self._first_batch).dataloader()

    def batch_of_device(self, index: int) -> Any:
        """What this device learns from in its batch ``index``: n devices take the batches in turn, n at once."""
        return self.batch(index if self.trainer is None else index * self.num_devices + self.trainer.global_rank)

    @property
    def num_devices(self) -> int:
        """Devices that learn together."""
        return 1 if self.trainer is None else self.trainer.world_size

    def state_dict(self) -> dict[str, Any]:
        """What decides, with the update, what is learned from in it; Lightning puts it into checkpoints."""
        return {**self._said, _FOUND: self.found}

    @property
    def found(self) -> dict[str, Any]:
        """What the description led to, as far as it may lead elsewhere another time; that has to be read."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on training with other data than those of the checkpoint; evaluation does not mind.

        Raises:
            CheckpointError: With every argument that changed, from what to what.
        """
        if self._verb != "fit":
            return
        known = {"num_devices": 1, **state_dict}  # some did not say so
        found = known.pop(_FOUND, None)
        self._refuse(changes(known, self._said))
        if found is not None:
            self._refuse(changes(found, self.found))

    def _refuse(self, changed: list[str]) -> None:
        if changed:
            raise CheckpointError(
                f"the run cannot go on with other data than it began with: {'; '.join(changed)}. Set those back, or "
                f"{self.remedy}"
            )

    @property
    def _said(self) -> dict[str, Any]:
        return {**self._decisions, "num_devices": self.num_devices}

    @cached_property
    def _decisions(self) -> dict[str, Any]:
        return data_decisions(self._arguments, self.undecided)

    def _first_batch(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_step * self.trainer.accumulate_grad_batches

    @property
    def _verb(self) -> str | None:
        return None if self.trainer is None else self.trainer.state.fn


def examined_loader(
    entries: Sequence[Any], batch_size: int | None, collate: Callable[[Any], Batch]
) -> DataLoader[Batch]:
    """A loader of what is validated or tested on: in order, and all of it on every device.

    Lightning would deal the entries out to the devices, where each would know of its own, and would repeat some so that
    all get equally many; a sampler for one device is left alone. Who can share the work shares it out himself.
    """
    dataset = cast("Dataset[Any]", entries)  # a list serves, but PyTorch's types know only its own class
    whole: DistributedSampler[Any] = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=False)
    return DataLoader(dataset, batch_size=batch_size, sampler=whole, collate_fn=collate)


def require_least(**least: tuple[int, int]) -> None:
    """Refuse with a ``DataError`` numbers, given by name with the least that each may be, that are too small."""
    for name, (value, bound) in least.items():
        if value < bound:
            raise DataError(f"{name} is {value}; it must be {bound} or more")
