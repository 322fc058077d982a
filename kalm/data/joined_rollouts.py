"""Chosen rollouts of one store or several, lined up as if they lay in one.

Shape letters: J chosen rollouts of all stores, R rollouts that are read, n their steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.store.layout import Key
from kalm.store.reader import InstructionRow, RolloutStore


class JoinedRollouts:
    """J rollouts; a rollout's place in the line is its name here.

    Attributes:
        lengths: Steps of each, int64 of shape (J,).
    """

    def __init__(self, stores: Sequence[RolloutStore], rollouts: Sequence[NDArray[np.int64]]) -> None:
        """Line rollouts up; nothing is copied.

        Args:
            stores: Where they lie; their columns have the same shapes.
            rollouts: For each store, rows of ``store.rollouts``.
        """
        self._stores, self._rollouts = list(stores), list(rollouts)
        self.lengths = self._column("length")
        self._starts = self._column("start")
        self._store = np.repeat(np.arange(len(self._stores)), [len(rows) for rows in rollouts])

    def __len__(self) -> int:
        """Number of rollouts, J."""
        return len(self.lengths)

    @property
    def instruction_rows(self) -> list[InstructionRow]:
        """Goal and sentence of each rollout."""
        return [
            store.instructions[row]
            for store, rows in zip(self._stores, self._rollouts, strict=True)
            for row in store.rollouts["instruction_id"][torch.from_numpy(rows)].tolist()
        ]

    def read(self, keys: Sequence[Key], places: NDArray[np.int64], skipped: NDArray[np.int64]) -> list[Tensor]:
        """Columns of the transitions of some rollouts, one rollout after the other.

        Args:
            keys: Which columns.
            places: Which rollouts, shape (R,).
            skipped: Steps of the beginning of each to leave out, shape (R,).

        Returns:
            For each key a tensor of shape (n, ...).
        """
        lengths = self.lengths[places] - skipped
        ends = lengths.cumsum()
        steps = np.arange(ends[-1]) + np.repeat(self._starts[places] + skipped - (ends - lengths), lengths)
        rows, store = torch.from_numpy(steps), torch.from_numpy(np.repeat(self._store[places], lengths))
        parts = [(number, (store == number).nonzero().squeeze(-1)) for number in range(len(self._stores))]
        order = torch.cat([part for _, part in parts]).argsort()
        return [
            torch.cat([self._stores[number].transitions[key][rows[part]] for number, part in parts])[order]
            for key in keys
        ]

    def _column(self, key: str) -> NDArray[np.int64]:
        columns = [
            store.rollouts[key][torch.from_numpy(rows)].numpy()
            for store, rows in zip(self._stores, self._rollouts, strict=True)
        ]
        return np.concatenate(columns).astype(np.int64)
