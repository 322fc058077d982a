"""Acting for several steps on one look: what comes between two looks, a student predicts.

A language model that answers with several actions carries them out before it looks again, or looks only once; TEDUO's
does one of these (section 3.3 does not say which). A student that chooses one action for the state that it sees does
the same where it is shown, between two looks, what a local model of the dynamics makes of the last look and the actions
since. One step is closed loop, several are a chunk, and without a number it is open loop: only the start is seen.

Shape letters: B episodes that run side by side, W columns, H rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError, require
from kalm.envs.base import Domain
from kalm.envs.simulation import Act
from kalm.rl.planning.empirical_graph import GRID, RecordedParts
from kalm.rl.planning.local_dynamics import learn_local_dynamics, predict
from kalm.store.collect import open_domain_store


@dataclass(frozen=True)
class Chunks:
    """How often a student looks.

    Attributes:
        store: Folder of recorded rollouts that the dynamics are learned from, in grids of the size that it acts in.
        steps: From one look to the next; null never looks again (open loop).
        part_key: In the provenance of the recorded rollouts: equal values, equal part.
    """

    store: str
    steps: int | None = None
    part_key: str = GRID

    def __post_init__(self) -> None:
        """Check the number."""
        require(self.steps is None or self.steps >= 1, "steps", self.steps, "at least 1, or null for open loop")

    def between_looks(self, act: Act, domain: Domain) -> Act:
        """Who acts as ``act`` does, but is shown predictions between two looks at an episode.

        Raises:
            DataError: If the world does not say what its actions depend on, or the store is of another one.
        """
        locality = domain.locality
        if locality is None:
            raise DataError(f"chunks is set, but {domain.name} does not say what its actions depend on")
        parts = RecordedParts(open_domain_store(domain, self.store), self.part_key)
        dynamics = learn_local_dynamics(locality, parts, domain.spec.action_size)
        believed: dict[int, NDArray[Any]] = {}  # what an episode has come to since the last look
        num_since: dict[int, int] = {}  # steps

        def act_on_beliefs(observations: NDArray[Any], rows: list[int], info: dict[str, Any]) -> NDArray[Any]:
            seen = observations.copy()
            for place, row in enumerate(rows):
                if row in believed and num_since[row] != self.steps:
                    seen[place] = believed[row]
                else:
                    num_since[row] = 0
            actions = act(seen, rows, info)
            for row, state in zip(rows, predict(dynamics, locality, seen, np.asarray(actions)), strict=True):
                believed[row] = state
                num_since[row] += 1
            return actions

        return act_on_beliefs
