"""The stores' sentences, and other words of the domain for the same goals, of which training shows some now and then.

Shape letters: I sentences of the stores, B transitions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kalm.core.errors import DataError
from kalm.core.goal import InstructedGoal
from kalm.envs.base import Domain
from kalm.store.reader import RolloutStore


class Paraphrases:
    """Says a goal in other words half of the time.

    Attributes:
        sentences: The stores' own I, then all paraphrases; equal ones of different goals stand there twice.
    """

    def __init__(self, domain: Domain, stores: Sequence[RolloutStore], instructions: Sequence[str]) -> None:
        """Ask the domain for paraphrases of the goal of each of ``instructions``, the stores' distinct sentences.

        Raises:
            DataError: If the domain has none for any of them.
        """
        row_of = {row.instruction: row for store in stores for row in store.instructions}
        self.sentences = list(instructions)
        places: dict[tuple[str, ...], int] = {}  # where the paraphrases of a goal begin
        first, number = [], []
        for instruction in instructions:
            row = row_of[instruction]
            goal = domain.goal_from_json(row.goal)
            others = tuple(domain.paraphrases(InstructedGoal(goal, instruction, row.goal_split)))
            first.append(places.setdefault(others, len(self.sentences)))
            number.append(len(others))
            if first[-1] == len(self.sentences):
                self.sentences += others
        if not any(number):
            raise DataError(f"paraphrase is true, but the domain {domain.name} has no paraphrases; set it to false")
        self._first, self._number = torch.tensor(first), torch.tensor(number)  # (I,) each

    def __call__(self, instruction: Tensor, words: Tensor) -> Tensor:
        """Places in ``sentences`` of what is shown, int64 of shape (B,).

        Args:
            instruction: Which of the stores' sentences each transition has, int64 of shape (B,).
            words: A random number for each, int64 of shape (B,), not negative.
        """
        instruction = instruction.long()
        number = self._number[instruction]
        other = self._first[instruction] + (words >> 1) % number.clamp(min=1)
        is_shown = (words & 1).bool() & (number > 0)
        return torch.where(is_shown, other, instruction)
