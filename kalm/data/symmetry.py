"""Transitions and texts under a domain's symmetries, such as the colours of equal balls exchanged.

What is shown under one is as true as what was recorded, so a store of N transitions becomes as many times N as there
are symmetries.

Shape letters: L symmetries, I texts, B transitions, T steps of a window, O numbers in an observation, A discrete
actions or numbers in a continuous action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.errors import DataError
from kalm.core.names import ACTION, INSTRUCTION_ID, NEXT_OBSERVATION, OBSERVATION
from kalm.envs.base import Domain
from kalm.envs.symmetry import Symmetry, texts_under


class SymmetryKind(Enum):
    """Under which of the domain's symmetries data are shown; the names are what a YAML file says.

    ``none``: as they were recorded (paper). ``names``: things that differ in name only, such as balls of another
    colour, are exchanged: far more different true rollouts than were recorded; sentences must name what is exchanged.
    ``mirror``: the world is seen in a mirror too. Motions to the other side are then in the data, though none of them
    was recorded. ``stand_ins``: in the mirror as well, and with things in the place of others that are handled alike,
    such as a ball for a puck. Motions of things that no recorded task moves are then in the data.
    """

    none = "none"
    names = "names"
    mirror = "mirror"
    stand_ins = "stand_ins"


def symmetries_of(domain: Domain, kind: SymmetryKind) -> Sequence[Symmetry]:
    """The symmetries of a kind, the first of which changes nothing; empty for ``none``.

    Raises:
        DataError: If the domain has none of that kind.
    """
    if kind is SymmetryKind.none:
        return ()
    found = {
        SymmetryKind.names: domain.symmetries,
        SymmetryKind.mirror: domain.mirror_images,
        SymmetryKind.stand_ins: domain.stand_ins,
    }[kind]
    if not found:
        raise DataError(f"symmetry is {kind.name}, but the domain {domain.name} has none of that kind; set it to none")
    return found


class SymmetricTexts:
    """Numbers texts under every symmetry, so that equal texts have equal numbers.

    Attributes:
        distinct: The text of each number; those that were given come first.
    """

    def __init__(self, texts: Sequence[str], symmetries: Sequence[Symmetry]) -> None:
        """Turn every distinct text in every way; texts may repeat, and there may be no symmetries."""
        given = list(dict.fromkeys(texts))
        rows = texts_under(given, symmetries) or [given]
        self.distinct = list(dict.fromkeys([*given, *(text for row in rows for text in row)]))
        number_of = {text: number for number, text in enumerate(self.distinct)}
        column_of = {text: column for column, text in enumerate(given)}
        self._number = np.array([[number_of[text] for text in row] for row in rows])
        self._column = np.array([column_of[text] for text in texts])

    def numbers_of(self, texts: NDArray[np.int64], symmetry: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of each text, given by its place, under a symmetry; shapes broadcast."""
        return self._number[symmetry, self._column[texts]]


class SymmetricNumbers:
    """Observations and actions under symmetries."""

    def __init__(self, symmetries: Sequence[Symmetry]) -> None:
        """Stack their tables; there may be none if nothing is shown under any."""
        self._observation_order = torch.from_numpy(np.array([r.observation_order for r in symmetries]))  # (L, O)
        self._observation_sign = torch.from_numpy(np.array([r.signs for r in symmetries]))  # (L, O)
        self._action_of = torch.from_numpy(np.array([r.action_of for r in symmetries]))  # (L, A)

    def observation(self, observation: Tensor, symmetry: Tensor) -> Tensor:
        """Observations of shape (B, O), each under its symmetry, int64 of shape (B,)."""
        return observation.gather(1, self._observation_order[symmetry]) * self._observation_sign[symmetry]

    def transitions(self, columns: Mapping[Any, Tensor], symmetry: Tensor) -> dict[Any, Tensor]:
        """All columns of transitions; observations and actions are new tensors, each under its symmetry."""
        return {
            **columns,
            OBSERVATION: self.observation(columns[OBSERVATION], symmetry),
            NEXT_OBSERVATION: self.observation(columns[NEXT_OBSERVATION], symmetry),
            ACTION: self.action(columns[ACTION], symmetry),
        }

    def action(self, action: Tensor, symmetry: Tensor) -> Tensor:
        """Actions of shape (B,) or (B, A), each under its symmetry, int64 of shape (B,)."""
        if action.is_floating_point():
            return self._action_of[symmetry] * action
        return self._action_of[symmetry, action.long()]


class SymmetricTransitions:
    """Shows transitions under symmetries that turn their sentence into one of those that are given.

    With the stores' own no sentence is new: what nobody recorded or imagined a rollout for, nobody asks the policy for.
    Goals of a split that is closed under symmetry, such as those of two balls, get all; a goal with a fixed order of
    all gets few.
    """

    def __init__(self, instructions: Sequence[str], symmetries: Sequence[Symmetry]) -> None:
        """Prepare the tables for the distinct sentences that ``instruction_id`` counts; the first changes nothing."""
        number_of = {sentence: number for number, sentence in enumerate(instructions)}
        # (L, I): the sentence's number, or -1 where it would be a new one.
        rows = [[number_of.get(text, -1) for text in texts] for texts in texts_under(instructions, symmetries)]
        self._instruction = torch.tensor(rows)
        allowed = self._instruction >= 0
        self._num_allowed = allowed.sum(dim=0)  # (I,)
        self._allowed = allowed.int().argsort(dim=0, descending=True, stable=True)  # (L, I): those allowed come first
        self._numbers = SymmetricNumbers(symmetries)

    def __call__(self, columns: Mapping[Any, Tensor], words: Tensor) -> dict[Any, Tensor]:
        """The same transitions, each under a symmetry; observations, actions and ``instruction_id`` are new tensors.

        Args:
            columns: Transitions with the keys of ``kalm.core.names``, shape (B, ...).
            words: A random number for each, int64 of shape (B,), not negative; it chooses among the symmetries that
                are allowed.
        """
        instruction = columns[INSTRUCTION_ID].long()
        symmetry = self._allowed[words % self._num_allowed[instruction], instruction]
        return {
            **self._numbers.transitions(columns, symmetry),
            INSTRUCTION_ID: self._instruction[symmetry, instruction],
        }
