"""What all data modules have in common: the world, real and imagined rollouts of it, and going on with the same data.

Shape letters: O numbers in an observation.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kalm.core.errors import CheckpointError, DataError
from kalm.core.provenance import changes
from kalm.data.choice import first_rollouts
from kalm.data.language_batches import ValidationBatch
from kalm.data.rollout_sources import ImaginedRollouts, RealRollouts, data_decisions
from kalm.data.selection import Selection
from kalm.data.statistics import Moments, RolloutStatistics, rollout_statistics, transition_moments
from kalm.data.symmetry import SymmetricNumbers, SymmetryKind, symmetries_of
from kalm.envs.base import Domain
from kalm.language.encoder import SentenceEncoder
from kalm.store.collect import open_domain_store
from kalm.store.reader import RolloutStore

Batch = TypeVar("Batch")
_ROLLOUTS_A_BATCH = 128


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


class RolloutData(LightningDataModule):
    """Rollouts of a world that something learns from."""

    # Constructor arguments that do not decide what is learned from; a resumed run may change them.
    undecided: ClassVar[frozenset[str]] = frozenset()
    # The verbs for which rollouts are read; for others none need be there.
    reading_verbs: ClassVar[frozenset[str]] = frozenset({"fit", "validate", "predict"})
    # What to do, other than resuming, with a run whose data have changed.
    remedy: ClassVar[str] = "start afresh under another --experiment"

    def __init__(self, arguments: Mapping[str, Any], num_held_out: int = 0) -> None:
        """Remember what the data were described by; nothing is read yet.

        Args:
            arguments: ``locals()`` of the subclass's constructor, where it has just begun: all of its arguments.
            num_held_out: Of the real rollouts in use, how many at the end are kept from training.

        Raises:
            DataError: If the description of the rollouts is out of range, or the domain lacks the symmetry.
        """
        super().__init__()
        self._arguments = {name: arguments[name] for name in inspect.signature(type(self)).parameters}
        self.domain: Domain = arguments["domain"]
        self.spec = self.domain.spec  # for whoever learns; known before any data is read
        if "encoder" in arguments:  # what knows no goals needs none
            self.encoder: SentenceEncoder = arguments["encoder"]
            self.spec = self.spec.with_goals(self.encoder.embedding_size)
        self.real: RealRollouts = arguments["real"]
        self.imagined: ImaginedRollouts | None = arguments.get("imagined")
        self._num_held_out = num_held_out
        self.real.check()
        if self.imagined is not None:
            self.imagined.check()
        self.symmetries = symmetries_of(self.domain, arguments.get("symmetry", SymmetryKind.none))
        if arguments["seed"] < 0:
            raise DataError(f"seed is {arguments['seed']}; it must be 0 or more")

    def prepare_data(self) -> None:
        """Collect the real store when it is absent and needed; refuse what imagined stores lack before."""
        verb = self._verb
        if verb is None or verb in self.reading_verbs:
            for path in self.imagined.stores if self.imagined else ():
                open_domain_store(self.domain, path)
            self.real.collect_if_absent(self.domain)

    @cached_property
    def stores(self) -> list[RolloutStore]:
        """The real store, then the imagined ones."""
        paths = [self.real.path, *(self.imagined.stores if self.imagined else ())]
        return [open_domain_store(self.domain, path) for path in paths]

    @property
    def store(self) -> RolloutStore:
        """The real store."""
        return self.stores[0]

    @cached_property
    def training(self) -> Selection:
        """The real rollouts that are learned from."""
        number = len(self._chosen) - self._num_held_out
        if number < 1:
            raise DataError(
                f"{len(self._chosen)} rollouts of {self.real.path} pass filter: {self.real.filter.name}; with "
                f"num_held_out {self._num_held_out} none is left to train on. Collect more, or lower num_held_out"
            )
        return first_rollouts(self._chosen, number)

    @cached_property
    def held_out_rollouts(self) -> Selection:
        """The real rollouts that are kept from training."""
        return self._chosen.keep(torch.arange(len(self._chosen)) >= len(self.training))

    @cached_property
    def imagination(self) -> Selection:
        """The imagined rollouts that are learned from; none where none were asked for."""
        stored = self._stored.of_stores(1)
        return self.imagined.choose(self.domain, stored) if self.imagined else stored

    @property
    def observation_mean(self) -> Tensor:
        """Mean of the real observations that are learned from, float32 of shape (O,)."""
        return self.moments[0].mean

    @property
    def observation_std(self) -> Tensor:
        """Their standard deviation, float32 of shape (O,); 1 where a number never changes."""
        return self.moments[0].std

    @property
    def change_std(self) -> Tensor:
        """Standard deviation of the change in one step, float32 of shape (O,); 0 where a number never changes."""
        return self.moments[1].spread

    @property
    def outcome_range(self) -> tuple[Tensor, Tensor]:
        """Least and greatest of each number after a step of the rollouts as shown, float32 of shape (O,) each."""
        ends = torch.stack([self.moments[2].least, self.moments[2].greatest])
        if self.symmetries:
            every = torch.arange(len(self.symmetries)).repeat_interleave(2)
            numbers = SymmetricNumbers(self.symmetries)
            ends = torch.cat([ends, numbers.observation(ends.repeat(len(self.symmetries), 1), every)])
        return ends.amin(0), ends.amax(0)

    @cached_property
    def moments(self) -> tuple[Moments, Moments, Moments]:
        """Of the observations, changes and next observations of the real rollouts that are learned from."""
        return transition_moments(self.training)

    @property
    def rollout_statistics(self) -> RolloutStatistics:
        """Returns and lengths of the rollouts that are learned from."""
        return rollout_statistics(self.training, self.training.joined_with(self.imagination))

    @abstractmethod
    def batch(self, index: int) -> Any:
        """What is learned from at once, a pure function of seed and index; what only imagines learns from nothing."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches without end, going on behind those that the trainer has used."""
        return IndexedBatches(self.batch, start=self._first_batch).dataloader()

    def held_out_loader(self) -> DataLoader[ValidationBatch]:
        """The held-out rollouts, some at a time."""
        places = cast("Dataset[Any]", range(len(self.held_out_rollouts)))  # PyTorch's types know no other datasets
        read = self.held_out_rollouts.rollout
        return DataLoader(
            places, _ROLLOUTS_A_BATCH, collate_fn=lambda some: ValidationBatch(rollouts=list(map(read, some)))
        )

    def state_dict(self) -> dict[str, Any]:
        """What decides, with the update, what is learned from in it; Lightning puts it into checkpoints."""
        return dict(self._decisions)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on training with other data than those of the checkpoint; evaluation does not mind.

        Raises:
            CheckpointError: With every argument that changed, from what to what.
        """
        changed = changes(state_dict, self.state_dict()) if self._verb == "fit" else []
        if changed:
            raise CheckpointError(
                f"the run cannot go on with other data than it began with: {'; '.join(changed)}. Set those back, or "
                f"{self.remedy}"
            )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors; leave what is validated on as it is: rollouts, work items, texts, episodes."""
        is_on_host = isinstance(batch, list | ValidationBatch)
        return batch if is_on_host else super().transfer_batch_to_device(batch, device, dataloader_idx)

    @cached_property
    def _decisions(self) -> dict[str, Any]:
        return data_decisions(self._arguments, self.undecided)

    @cached_property
    def _stored(self) -> Selection:
        return Selection.whole(self.stores)

    @cached_property
    def _chosen(self) -> Selection:
        return self.real.choose(self.domain, self._stored.of_stores(0, 1))

    def _first_batch(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_step * self.trainer.accumulate_grad_batches

    @property
    def _verb(self) -> str | None:
        return None if self.trainer is None else self.trainer.state.fn


def require_least(**least: tuple[int, int]) -> None:
    """Refuse with a ``DataError`` numbers, given by name with the least that each may be, that are too small."""
    for name, (value, bound) in least.items():
        if value < bound:
            raise DataError(f"{name} is {value}; it must be {bound} or more")
