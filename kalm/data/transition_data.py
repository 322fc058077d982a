"""The data module of the dynamics check: real transitions without goals, and rollouts that are held out to calibrate.

Shape letters: B transitions of a batch, M those of the held-out rollouts, O numbers in an observation.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from kalm.core import names
from kalm.core.changes import changes
from kalm.core.errors import CheckpointError, DataError
from kalm.data.index_batches import IndexedBatches
from kalm.data.moments import Moments
from kalm.data.symmetry import RelabelledNumbers
from kalm.data.task_spec import dynamics_spec
from kalm.data.transition_moments import transition_moments
from kalm.envs.base import Domain
from kalm.store.domain_store import collect_if_absent, open_domain_store
from kalm.store.reader import RolloutStore

Transitions = dict[Any, Tensor]
_KEYS = (names.OBSERVATION, names.ACTION, names.NEXT_OBSERVATION)


class TransitionData(LightningDataModule):
    """Real transitions for whoever learns what an action changes.

    Attributes:
        spec: Sizes for the model; known before any data is read.
        domain: The world.
    """

    def __init__(
        self,
        domain: Domain,
        real: str,
        batch_size: int = 256,
        relabel: bool = False,
        num_held_out: int = 1000,
        num_collected_rollouts: int = 10000,
        collect_seed: int = 0,
        seed: int = 0,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            domain: The world that the rollouts come from.
            real: Folder of the store of real rollouts; collected there when absent.
            batch_size: Transitions of one update, B.
            relabel: Whether each transition is shown under a random one of the domain's relabellings, such as the
                colours of equal balls exchanged.
            num_held_out: Rollouts that are kept from training, to say how far off the model is on what it has not seen.
            num_collected_rollouts: Real rollouts to collect when ``real`` is absent.
            collect_seed: Seed of that collection.
            seed: Decides which transitions each update gets.

        Raises:
            DataError: If a number is out of range, or the domain has no relabellings.
        """
        super().__init__()
        self.domain, self.spec = domain, dynamics_spec(domain)
        self._real, self._batch_size, self._num_held_out, self._seed = real, batch_size, num_held_out, seed
        self._num_collected_rollouts, self._collect_seed = num_collected_rollouts, collect_seed
        for name, value, least in (("batch_size", batch_size, 1), ("num_held_out", num_held_out, 1), ("seed", seed, 0)):
            if value < least:
                raise DataError(f"{name} is {value}; it must be {least} or more")
        if relabel and not domain.symmetries:
            raise DataError(f"relabel is true, but the domain {domain.name} has no relabellings; set it to false")
        self._relabellings = domain.symmetries if relabel else ()
        self._numbers = RelabelledNumbers(self._relabellings)

    def prepare_data(self) -> None:
        """Collect the real store when it is absent."""
        collect_if_absent(self.domain, self._real, self._num_collected_rollouts, self._collect_seed)

    def setup(self, stage: str) -> None:
        """Open the store, so that what is wrong with it shows at once."""
        if self.store.num_rollouts <= self._num_held_out:
            raise DataError(
                f"{self._real} has {self.store.num_rollouts} rollouts; with num_held_out {self._num_held_out} none is "
                "left to train on. Collect more, or lower num_held_out"
            )

    @cached_property
    def store(self) -> RolloutStore:
        """The real rollouts."""
        return open_domain_store(self.domain, self._real)

    def state_dict(self) -> dict[str, Any]:
        """What decides, with seed and update, which transitions an update gets."""
        return {"real": self.store.fingerprint[:12], "batch_size": self._batch_size, "num_held_out": self._num_held_out}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on training with other data than those of the checkpoint."""
        changed = changes(state_dict, self.state_dict())
        if changed:
            raise CheckpointError(
                f"the run cannot go on with other data than it began with: {'; '.join(changed)}. Set those back, or "
                "start afresh under another --experiment"
            )

    @cached_property
    def moments(self) -> tuple[Moments, Moments, Moments]:
        """Of the training rollouts' observations, changes and next observations."""
        return transition_moments(self.store, torch.arange(self._num_training_rollouts))

    @property
    def held_out(self) -> Transitions:
        """Every transition of the held-out rollouts, as it was recorded, shape (M, ...)."""
        return {key: self.store.transitions[key][self._num_training_transitions :] for key in _KEYS}

    def batch(self, index: int) -> Transitions:
        """Transitions of update ``index``, shape (B, ...); a pure function of seed and index."""
        rng = np.random.default_rng([self._seed, index])
        rows = torch.from_numpy(rng.integers(self._num_training_transitions, size=self._batch_size))
        columns = {key: self.store.transitions[key][rows] for key in _KEYS}
        if not self._relabellings:
            return columns
        relabelling = torch.from_numpy(rng.integers(len(self._relabellings), size=len(rows)))
        return {
            names.OBSERVATION: self._numbers.observation(columns[names.OBSERVATION], relabelling),
            names.ACTION: self._numbers.action(columns[names.ACTION], relabelling),
            names.NEXT_OBSERVATION: self._numbers.observation(columns[names.NEXT_OBSERVATION], relabelling),
        }

    def train_dataloader(self) -> DataLoader[Transitions]:
        """Batches without end, going on where the trainer's update counter stands."""
        return IndexedBatches(self.batch, lambda: 0 if self.trainer is None else self.trainer.global_step).dataloader()

    @property
    def _num_training_rollouts(self) -> int:
        return self.store.num_rollouts - self._num_held_out

    @property
    def _num_training_transitions(self) -> int:
        return int(self.store.rollouts["start"][self._num_training_rollouts])
