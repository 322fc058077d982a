"""Single steps of rollouts behind sentences that say what moved and where, in place of what the rollout was for.

Hindsight captions teach what words of motion mean to a model whose data hold other goals only. Nobody asks whether a
step did what some goal wants: the domain's names for what is seen are all that is used (``Domain.descriptions``).

Shape letters: S described steps, n transitions that are read, B, O as in ``Domain.descriptions``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kalm.core import names
from kalm.core.errors import DataError
from kalm.data.selection import Selection
from kalm.envs.base import Domain
from kalm.store.layout import Key


class DescribedSteps:
    """Those steps of some rollouts of which there is something to say, each as a rollout of its own.

    Attributes:
        sentences: What is said of each, S entries of one sentence or more.
        lengths: A step each, int64 of shape (S,).
    """

    def __init__(self, domain: Domain, rollouts: Selection) -> None:
        """Look at every step.

        Raises:
            DataError: If the domain says nothing of any.
        """
        rows = rollouts.rows()
        before, after = rollouts.read((names.OBSERVATION, names.NEXT_OBSERVATION), rows)
        said = domain.descriptions(before.numpy(), after.numpy())
        is_told = np.array([len(sentences) > 0 for sentences in said])
        if not is_told.any():
            raise DataError(
                f"tasks.description asks for described steps, but the domain {domain.name} describes none of the "
                f"{len(rows)} steps; set it to 0"
            )
        self._rollouts, self._rows = rollouts, rows[torch.from_numpy(is_told)]
        self.sentences: list[Sequence[str]] = [sentences for sentences in said if sentences]
        self.lengths = torch.ones(len(self._rows), dtype=torch.int64)

    def __len__(self) -> int:
        """How many steps are described, S."""
        return len(self._rows)

    def rows(self, places: Tensor, skipped: Tensor | int = 0) -> Tensor:
        """Transitions of some described steps, int64 of the shape of ``places``; of one step none can be skipped."""
        return self._rows[places]

    def read(self, keys: Sequence[Key], rows: Tensor) -> list[Tensor]:
        """Columns of transitions, as ``Selection.read`` gives them; rewards are those of the rollouts' own goals."""
        return self._rollouts.read(keys, rows)
