"""Mean, spread and range of what some rollouts of a store hold, however large the store is.

Shape letters: R rollouts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kalm.core import names
from kalm.data.moments import Moments
from kalm.store.reader import RolloutStore

_CHUNK = 1 << 16


def transition_moments(store: RolloutStore, rollouts: Tensor) -> tuple[Moments, Moments, Moments]:
    """Of observations, changes and next observations, read piece by piece: memory does not grow with the store.

    Args:
        store: Where the rollouts lie.
        rollouts: Rows of ``store.rollouts``, int64 of shape (R,), R at least 1.
    """
    of_observation, of_change, of_outcome = Moments(), Moments(), Moments()
    transitions = store.transitions
    starts, lengths = (store.rollouts[key][rollouts].long() for key in ("start", "length"))
    ends = lengths.cumsum(0)
    steps = torch.arange(int(ends[-1])) + (starts - (ends - lengths)).repeat_interleave(lengths)
    for piece in steps.split(_CHUNK):
        observation, outcome = (transitions[key][piece] for key in (names.OBSERVATION, names.NEXT_OBSERVATION))
        of_observation.add(observation)
        of_change.add(outcome - observation)
        of_outcome.add(outcome)
    return of_observation, of_change, of_outcome
