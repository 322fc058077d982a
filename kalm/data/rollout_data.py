"""What all data modules of rollouts have in common: the world, and real and imagined rollouts of it.

Shape letters: O numbers in an observation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kalm.core.errors import DataError
from kalm.data.choice import first_rollouts
from kalm.data.language_batches import ValidationBatch
from kalm.data.rollout_sources import ImaginedRollouts, RealRollouts
from kalm.data.selection import Selection
from kalm.data.statistics import Moments, RolloutStatistics, rollout_statistics, transition_moments
from kalm.data.symmetry import SymmetricNumbers, SymmetryKind, symmetries_of
from kalm.data.training_data import TrainingData, examined_loader
from kalm.envs.base import Domain
from kalm.language.encoder import SentenceEncoder
from kalm.store.collect import open_domain_store
from kalm.store.reader import RolloutStore

Batch = TypeVar("Batch")
_ROLLOUTS_A_BATCH = 128


class RolloutData(TrainingData):
    """Rollouts of a world that something learns from."""

    # The verbs for which rollouts are read; for others none need be there.
    reading_verbs: ClassVar[frozenset[str]] = frozenset({"fit", "validate", "predict"})

    def __init__(self, arguments: Mapping[str, Any], num_held_out: int = 0) -> None:
        """Remember what the data were described by; nothing is read yet.

        Args:
            arguments: ``locals()`` of the subclass's constructor, where it has just begun: all of its arguments.
            num_held_out: Of the real rollouts in use, how many at the end are kept from training.

        Raises:
            DataError: If the description of the rollouts is out of range, or the domain lacks the symmetry.
        """
        super().__init__(arguments)
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
    def found(self) -> dict[str, Any]:
        """Which rollouts are learned from, and how much each counts: a label of the same name may choose others."""
        return {**super().found, "chosen_rollouts_sha256": self._chosen_sha256}

    @cached_property
    def _chosen_sha256(self) -> str:
        parts = (tensor for one in (self.training, self.imagination) for tensor in (one.rollouts, one.weights))
        return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in parts)).hexdigest()

    @property
    def observation_mean(self) -> Tensor:
        """Mean of the real observations that are learned from, float32 of shape (O,)."""
        source, sign = self._statistics_of
        return sign * self.moments[0].mean[source]

    @property
    def observation_std(self) -> Tensor:
        """Their standard deviation, float32 of shape (O,); 1 where a number never changes."""
        return self.moments[0].std[self._statistics_of[0]]

    @property
    def change_std(self) -> Tensor:
        """Standard deviation of the change in one step, float32 of shape (O,); 0 where a number never changes."""
        return self.moments[1].spread[self._statistics_of[0]]

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

    @cached_property
    def _statistics_of(self) -> tuple[Tensor, Tensor]:
        """Of which number each has the statistics, int64 of shape (O,), and with which sign, float32.

        Its own, but for a number that varies under symmetries alone, such as the place of a thing that is shown instead
        of another: that has those of what it stands for.
        """
        varies = self.moments[0].spread > 0
        source, sign = torch.arange(len(varies)), torch.ones(len(varies))
        for symmetry in self.symmetries:
            order, signs = torch.from_numpy(symmetry.observation_order), torch.from_numpy(symmetry.signs)
            borrows = ~varies[source] & varies[order]
            source, sign = torch.where(borrows, order, source), torch.where(borrows, signs, sign)
        return source, sign

    @property
    def rollout_statistics(self) -> RolloutStatistics:
        """Returns and lengths of the rollouts that are learned from."""
        return rollout_statistics(self.training, self.training.joined_with(self.imagination))

    def held_out_loader(self) -> DataLoader[ValidationBatch]:
        """The held-out rollouts, some at a time."""
        places, read = range(len(self.held_out_rollouts)), self.held_out_rollouts.rollout
        return examined_loader(places, _ROLLOUTS_A_BATCH, lambda some: ValidationBatch(rollouts=list(map(read, some))))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors; leave what is validated on as it is: rollouts, work items, texts, episodes."""
        is_on_host = isinstance(batch, list | ValidationBatch)
        return batch if is_on_host else super().transfer_batch_to_device(batch, device, dataloader_idx)

    @cached_property
    def _stored(self) -> Selection:
        return Selection.whole(self.stores)

    @cached_property
    def _chosen(self) -> Selection:
        return self.real.choose(self.domain, self._stored.of_stores(0, 1))
