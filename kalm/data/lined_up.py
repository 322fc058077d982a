"""Several rollout stores numbered as if they were one.

Shape letters: B transitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kalm.core.names import INSTRUCTION_ID, ROLLOUT_ID
from kalm.data.returns import store_returns_to_go
from kalm.store.reader import RolloutStore


class LinedUpStores:
    """Stores one after the other: each counts its instructions and rollouts from 0, here they all go by one count.

    Attributes:
        instructions: The distinct sentences of all stores.
    """

    def __init__(self, stores: Sequence[RolloutStore]) -> None:
        """Read the tables of instructions; transitions are not touched.

        Args:
            stores: At least one.
        """
        self._stores = list(stores)
        sentences = [row.instruction for store in stores for row in store.instructions]
        self.instructions = list(dict.fromkeys(sentences))
        number_of = {sentence: number for number, sentence in enumerate(self.instructions)}
        self._instruction = torch.tensor([number_of[sentence] for sentence in sentences])
        self._first_instruction = _firsts([len(store.instructions) for store in stores])
        self._first_rollout = _firsts([store.num_rollouts for store in stores])

    def numbered(self, columns: Mapping[Any, Tensor], store: Tensor) -> dict[Any, Tensor]:
        """Transitions as the stores have them, with ``instruction_id`` and ``rollout_id`` of the common count.

        Args:
            columns: Transitions with the keys of ``kalm.core.names``, shape (B, ...).
            store: Which store each comes from, int64 of shape (B,).

        Returns:
            All columns; ``instruction_id`` is a place in ``instructions``.
        """
        return {
            **columns,
            INSTRUCTION_ID: self._instruction[self._first_instruction[store] + columns[INSTRUCTION_ID]],
            ROLLOUT_ID: self._first_rollout[store] + columns[ROLLOUT_ID],
        }

    def return_to_go(self, store: Tensor, index: Tensor) -> Tensor:
        """Sum of the rewards from a transition to its rollout's end, float32 of shape (B,).

        Args:
            store: Which store each transition lies in, int64 of shape (B,).
            index: Its place there, int64 of shape (B,).
        """
        first_transition, to_go = self._returns_to_go
        return to_go[first_transition[store] + index]

    @cached_property
    def _returns_to_go(self) -> tuple[Tensor, Tensor]:
        to_go = [store_returns_to_go(store) for store in self._stores]
        return _firsts([len(store) for store in self._stores]), torch.cat(to_go)


def _firsts(counts: Sequence[int]) -> Tensor:
    stops = torch.tensor(counts).cumsum(0)
    return stops - torch.tensor(counts)
