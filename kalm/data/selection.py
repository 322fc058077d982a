"""Some rollouts of one store or several, and how much each counts: what everything that learns is given.

Every store counts its rollouts, transitions and sentences from 0. A selection counts them over all of its stores, one
store after the other, so that whoever chooses, draws or reads knows no stores. Nothing here asks what an observation
looks like, and sentences are touched only when somebody asks for them: rollouts need no goal.

Shape letters: S stores, R rollouts of all stores, J rollouts of a selection, n transitions that are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.core import names
from kalm.core.rollout import Rollout
from kalm.store.layout import Key
from kalm.store.reader import InstructionRow, RolloutStore


class StoreLine:
    """Stores one after the other, with one count of rollouts, transitions and sentences.

    Attributes:
        stores: The S stores, at least one; their columns have the same types.
        starts: First transition of each rollout, int64 of shape (R,).
        lengths: Transitions of each rollout, int64 of shape (R,).
        first_rollouts: First rollout of each store, int64 of shape (S,).
    """

    def __init__(self, stores: Sequence[RolloutStore]) -> None:
        """Read where rollouts lie; transitions and sentences are not touched."""
        self.stores = list(stores)
        self.first_rollouts = _firsts([store.num_rollouts for store in stores])
        self._first_rows = _firsts([len(store) for store in stores])
        self.lengths = torch.cat([store.rollouts["length"] for store in stores]).long()
        starts = [store.rollouts["start"] + first for store, first in zip(stores, self._first_rows, strict=True)]
        self.starts = torch.cat(starts)

    @cached_property
    def goal_splits(self) -> NDArray[np.str_]:
        """Goal split of each rollout, shape (R,)."""
        return np.concatenate([store.goal_splits for store in self.stores])

    @cached_property
    def instructions(self) -> list[str]:
        """The distinct sentences of all stores; what is read as ``instruction_id`` is a place in it."""
        return list(dict.fromkeys(row.instruction for store in self.stores for row in store.instructions))

    def read(self, keys: Sequence[Key], rows: Tensor) -> list[Tensor]:
        """Columns of some transitions.

        Args:
            keys: Which columns: those of the stores, with ``instruction_id`` and ``rollout_id`` in the common count,
                and ``return_to_go``.
            rows: Which transitions, int64 of shape (n,); the columns have shape (n, ...).
        """
        if len(self.stores) == 1:
            return self._read(0, keys, rows)
        store = torch.searchsorted(self._first_rows, rows, right=True) - 1
        places = [(store == number).nonzero().squeeze(-1) for number in range(len(self.stores))]
        asked = [(number, place) for number, place in enumerate(places) if len(place)]
        parts = [self._read(number, keys, rows[place] - self._first_rows[number]) for number, place in asked]
        if len(parts) == 1:
            return parts[0]
        order = torch.cat([place for _, place in asked]).argsort()
        return [torch.cat(columns).index_select(0, order) for columns in zip(*parts, strict=True)]

    def _read(self, number: int, keys: Sequence[Key], rows: Tensor) -> list[Tensor]:
        store = self.stores[number]
        stored = [key for key in keys if key != names.RETURN_TO_GO]
        columns = dict(zip(stored, store.read(stored, rows), strict=True))
        if names.ROLLOUT_ID in columns:
            columns[names.ROLLOUT_ID] = columns[names.ROLLOUT_ID].long() + self.first_rollouts[number]
        if names.INSTRUCTION_ID in columns:
            columns[names.INSTRUCTION_ID] = self._instruction_numbers[number][columns[names.INSTRUCTION_ID].long()]
        if names.RETURN_TO_GO in keys:
            columns[names.RETURN_TO_GO] = self._returns_to_go[number][rows]
        return [columns[key] for key in keys]

    @cached_property
    def _instruction_numbers(self) -> list[Tensor]:
        """For each store the place in ``instructions`` of each row of its table; last, for row -1, that it has none."""
        number_of = {sentence: number for number, sentence in enumerate(self.instructions)}
        rows = ([number_of[row.instruction] for row in store.instructions] for store in self.stores)
        return [torch.tensor([*numbers, -1]) for numbers in rows]

    @cached_property
    def _returns_to_go(self) -> list[Tensor]:
        return [
            returns_to_go(store.transitions[names.REWARD], store.rollouts["length"].long()) for store in self.stores
        ]


@dataclass(frozen=True, eq=False)
class Selection:
    """Rollouts of a line of stores, each with a weight."""

    line: StoreLine
    rollouts: Tensor  # which of the line's, int64 of shape (J,), ascending
    weights: Tensor  # how much each counts in a loss, float32 of shape (J,); 1 is the weight of others

    @classmethod
    def whole(cls, stores: Sequence[RolloutStore]) -> Selection:
        """All rollouts of some stores, at weight 1."""
        line = StoreLine(stores)
        return cls(line, torch.arange(len(line.lengths)), torch.ones(len(line.lengths)))

    def __len__(self) -> int:
        """Number of rollouts, J."""
        return len(self.rollouts)

    def keep(self, is_kept: Tensor | NDArray[np.bool_]) -> Selection:
        """Those at which ``is_kept``, bool of shape (J,), is true."""
        is_kept = torch.as_tensor(is_kept)
        return Selection(self.line, self.rollouts[is_kept], self.weights[is_kept])

    def of_stores(self, first: int, stop: int | None = None) -> Selection:
        """Those that lie in the stores ``first`` to ``stop - 1``."""
        places = torch.arange(len(self.line.stores))[first:stop]
        return self.keep(torch.isin(self._store_numbers, places))

    def of_goal_split(self, goal_split: str) -> Selection:
        """Those whose goal is of a split."""
        return self.keep(self.goal_splits == goal_split)

    def joined_with(self, later: Selection) -> Selection:
        """These and others of the same line; all others come later in it."""
        assert later.line is self.line, "selections of different lines have different counts"
        return Selection(
            self.line, torch.cat([self.rollouts, later.rollouts]), torch.cat([self.weights, later.weights])
        )

    @property
    def lengths(self) -> Tensor:
        """Transitions of each rollout, int64 of shape (J,)."""
        return self.line.lengths[self.rollouts]

    @property
    def starts(self) -> Tensor:
        """First transition of each rollout, int64 of shape (J,)."""
        return self.line.starts[self.rollouts]

    @property
    def goal_splits(self) -> NDArray[np.str_]:
        """Goal split of each rollout, shape (J,)."""
        splits: NDArray[np.str_] = self.line.goal_splits[self.rollouts.numpy()]
        return splits

    @property
    def instruction_rows(self) -> list[InstructionRow]:
        """Goal and sentence of each rollout."""
        return [
            store.instructions[number]
            for store, rows in self.by_store()
            for number in store.rollouts[names.INSTRUCTION_ID][rows].tolist()
        ]

    def by_store(self) -> Iterator[tuple[RolloutStore, Tensor]]:
        """Every store that has any of them, with the rows of its own ``rollouts`` that are chosen, int64."""
        for number in self._store_numbers.unique().tolist():
            rows = self.rollouts[self._store_numbers == number] - self.line.first_rollouts[number]
            yield self.line.stores[number], rows

    def rows(self, places: Tensor | None = None, skipped: Tensor | int = 0) -> Tensor:
        """Transitions of some rollouts, one rollout after the other, int64.

        Args:
            places: Which rollouts of the selection, int64; None takes all.
            skipped: Steps of the beginning of each to leave out, fewer than it has.
        """
        chosen = self.rollouts if places is None else self.rollouts[places]
        lengths = self.line.lengths[chosen] - skipped
        ends = lengths.cumsum(0)
        first = self.line.starts[chosen] + skipped - (ends - lengths)
        return torch.arange(int(lengths.sum())) + first.repeat_interleave(lengths)

    def read(self, keys: Sequence[Key], rows: Tensor) -> list[Tensor]:
        """Columns of transitions of the line, as ``StoreLine.read`` gives them; ``weight`` can be asked for too."""
        if names.WEIGHT not in keys:
            return self.line.read(keys, rows)
        read: list[Key] = [names.ROLLOUT_ID, *(key for key in keys if key not in (names.ROLLOUT_ID, names.WEIGHT))]
        columns = dict(zip(read, self.line.read(read, rows), strict=True))
        columns[names.WEIGHT] = self._weight_of_rollout[columns[names.ROLLOUT_ID]]
        return [columns[key] for key in keys]

    def rollout(self, place: int) -> Rollout:
        """Copy one rollout into memory."""
        number = int(self._store_numbers[place])
        return self.line.stores[number].rollout(int(self.rollouts[place] - self.line.first_rollouts[number]))

    @cached_property
    def _store_numbers(self) -> Tensor:
        return torch.searchsorted(self.line.first_rollouts, self.rollouts, right=True) - 1

    @cached_property
    def _weight_of_rollout(self) -> Tensor:
        return torch.ones(len(self.line.lengths)).index_put_((self.rollouts,), self.weights)


def returns_to_go(reward: Tensor, lengths: Tensor) -> Tensor:
    """Sum of the rewards of each step and of all later ones of its rollout, undiscounted, float32 of shape (n,).

    Args:
        reward: Of each step, rollouts one after the other, shape (n,).
        lengths: Steps of each rollout, int64 of shape (J,).
    """
    earned = reward.double().cumsum(0)  # double: the sum runs over all rollouts
    at_end = earned[lengths.cumsum(0) - 1].repeat_interleave(lengths)
    return (at_end - earned + reward).float()


def _firsts(counts: Sequence[int]) -> Tensor:
    stops = torch.tensor(counts).cumsum(0)
    return stops - torch.tensor(counts)
