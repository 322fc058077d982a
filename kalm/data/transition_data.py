"""The data module of the dynamics check: real transitions without goals, and rollouts that are held out to calibrate.

Shape letters: B transitions of a batch, M those of the held-out rollouts.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kalm.core import names
from kalm.data.rollout_data import RolloutData
from kalm.data.rollout_sources import RealRollouts
from kalm.data.symmetry import SymmetricNumbers, SymmetryKind
from kalm.data.training_data import require_least
from kalm.envs.base import Domain

Transitions = dict[Any, Tensor]
_KEYS = (names.OBSERVATION, names.ACTION, names.NEXT_OBSERVATION)


class TransitionData(RolloutData):
    """Real transitions for whoever learns what an action changes."""

    def __init__(
        self,
        domain: Domain,
        real: RealRollouts,
        batch_size: int = 256,
        symmetry: SymmetryKind = SymmetryKind.none,
        num_held_out: int = 1000,
        seed: int = 0,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            domain: The world that the rollouts come from.
            real: The real rollouts.
            batch_size: Transitions of one update, B.
            symmetry: Under which of the domain's symmetries each transition is shown, a random one each time.
            num_held_out: Rollouts that are kept from training, to say how far off the model is on what it has not seen.
            seed: Decides which transitions each update gets.

        Raises:
            DataError: If a number is out of range, or the domain has no such symmetry.
        """
        super().__init__(locals(), num_held_out)
        self._batch_size, self._seed = batch_size, seed
        self._numbers = SymmetricNumbers(self.symmetries)
        require_least(batch_size=(batch_size, 1), num_held_out=(num_held_out, 1))

    def setup(self, stage: str) -> None:
        """Open the store, so that what is wrong with it shows at once."""
        _ = self.training

    @property
    def held_out(self) -> Transitions:
        """Every transition of the held-out rollouts, as it was recorded, shape (M, ...)."""
        return self._read(self.held_out_rollouts.rows())

    def batch(self, index: int) -> Transitions:
        """Transitions of update ``index``, shape (B, ...); a pure function of seed and index."""
        rng = np.random.default_rng([self._seed, index])
        columns = self._read(self._rows[torch.from_numpy(rng.integers(len(self._rows), size=self._batch_size))])
        if not self.symmetries:
            return columns
        symmetry = torch.from_numpy(rng.integers(len(self.symmetries), size=self._batch_size))
        return self._numbers.transitions(columns, symmetry)

    @cached_property
    def _rows(self) -> Tensor:
        return self.training.rows()

    def _read(self, rows: Tensor) -> Transitions:
        return dict(zip(_KEYS, self._stored.read(_KEYS, rows), strict=True))
