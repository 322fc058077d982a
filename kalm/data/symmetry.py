"""Transitions and texts under a domain's relabellings, such as the colours of equal balls exchanged.

A relabelled transition is as true as the recorded one, so a store of N transitions becomes as many times N as there
are relabellings.

Shape letters: L relabellings, I texts, B transitions, T steps of a window, O numbers in an observation, A discrete
actions or numbers in a continuous action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.names import ACTION, INSTRUCTION_ID, NEXT_OBSERVATION, OBSERVATION
from kalm.envs.symmetry import Symmetry, texts_under


class RelabelledTexts:
    """Numbers texts under every relabelling, so that equal texts have equal numbers.

    Attributes:
        distinct: The text of each number; those that were given come first.
    """

    def __init__(self, texts: Sequence[str], relabellings: Sequence[Symmetry]) -> None:
        """Relabel every distinct text in every way.

        Args:
            texts: Sentences; they may repeat.
            relabellings: May be empty.
        """
        given = list(dict.fromkeys(texts))
        rows = texts_under(given, relabellings) or [given]
        self.distinct = list(dict.fromkeys([*given, *(text for row in rows for text in row)]))
        number_of = {text: number for number, text in enumerate(self.distinct)}
        column_of = {text: column for column, text in enumerate(given)}
        self._number = np.array([[number_of[text] for text in row] for row in rows])
        self._column = np.array([column_of[text] for text in texts])

    def numbers_of(self, texts: NDArray[np.int64], relabelling: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of each text, given by its place, under a relabelling; shapes broadcast."""
        return self._number[relabelling, self._column[texts]]


class RelabelledNumbers:
    """Observations and actions under relabellings."""

    def __init__(self, relabellings: Sequence[Symmetry]) -> None:
        """Stack their tables.

        Args:
            relabellings: L; there may be none if nothing is relabelled.
        """
        self._observation_order = torch.from_numpy(np.array([r.observation_order for r in relabellings]))  # (L, O)
        self._observation_sign = torch.from_numpy(np.array([r.signs for r in relabellings]))  # (L, O)
        self._action_of = torch.from_numpy(np.array([r.action_of for r in relabellings]))  # (L, A)

    def observation(self, observation: Tensor, relabelling: Tensor) -> Tensor:
        """Observations of shape (B, O), each under its relabelling, int64 of shape (B,)."""
        return observation.gather(1, self._observation_order[relabelling]) * self._observation_sign[relabelling]

    def action(self, action: Tensor, relabelling: Tensor) -> Tensor:
        """Actions of shape (B,) or (B, A), each under its relabelling, int64 of shape (B,)."""
        if action.is_floating_point():
            return self._action_of[relabelling] * action
        return self._action_of[relabelling, action.long()]


class RelabelledTransitions:
    """Shows transitions under relabellings that turn their sentence into one of the stores' own.

    So no sentence is new: what nobody recorded or imagined a rollout for, nobody asks the policy for. Goals of a split
    that is closed under relabelling, such as those of two balls, get all; a goal with a fixed order of all gets few.
    """

    def __init__(self, instructions: Sequence[str], relabellings: Sequence[Symmetry]) -> None:
        """Prepare the tables.

        Args:
            instructions: The distinct sentences that ``instruction_id`` counts, I.
            relabellings: At least one, L; the first changes nothing.
        """
        number_of = {sentence: number for number, sentence in enumerate(instructions)}
        # (L, I): the sentence's number, or -1 where it would be a new one.
        rows = [[number_of.get(text, -1) for text in texts] for texts in texts_under(instructions, relabellings)]
        self._instruction = torch.tensor(rows)
        allowed = self._instruction >= 0
        self._num_allowed = allowed.sum(dim=0)  # (I,)
        self._allowed = allowed.int().argsort(dim=0, descending=True, stable=True)  # (L, I): those allowed come first
        self._numbers = RelabelledNumbers(relabellings)

    def __call__(self, columns: Mapping[Any, Tensor], words: Tensor) -> dict[Any, Tensor]:
        """The same transitions, each under a relabelling.

        Args:
            columns: Transitions with the keys of ``kalm.core.names``, shape (B, ...).
            words: A random number for each, int64 of shape (B,), not negative; it chooses among the relabellings that
                are allowed.

        Returns:
            All columns; observations, actions and ``instruction_id`` are new tensors.
        """
        instruction = columns[INSTRUCTION_ID].long()
        relabelling = self._allowed[words % self._num_allowed[instruction], instruction]
        return {
            **columns,
            OBSERVATION: self._numbers.observation(columns[OBSERVATION], relabelling),
            NEXT_OBSERVATION: self._numbers.observation(columns[NEXT_OBSERVATION], relabelling),
            ACTION: self._numbers.action(columns[ACTION], relabelling),
            INSTRUCTION_ID: self._instruction[relabelling, instruction],
        }
