"""A local model of the dynamics, learned from recorded steps alone.

Data of an expert says of most states what one action does there. But what an action does is a local matter: stepping
ahead onto an empty tile is the same wherever it is. So the model is a table from (situation, action) to the effect that
was seen there, kept only where it was the same each time; a world says what a situation and an effect are
(``kalm.envs.locality``), and nothing else. A step that it cannot tell it does not predict.

Shape letters: S states, A actions, W situations, B states at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.envs.locality import NOT_LOCAL, Locality
from kalm.rl.planning.empirical_graph import Part

_NEVER = -2  # no such step was recorded
_AT_ONCE = 8192  # steps whose states are in memory together


@dataclass(frozen=True, eq=False)
class LocalDynamics:
    """What each action does in each situation.

    Attributes:
        effect: As the world numbers effects, int64, shape (W, A); negative where it is not known, be it that the
            action was never taken there, or that its effects differed or were not local.
        changes: Where the action was seen to change something, bool, shape (W, A).
    """

    effect: NDArray[np.int64]
    changes: NDArray[np.bool_]

    @property
    def num_actions(self) -> int:
        """How many, A."""
        return int(self.effect.shape[1])

    @property
    def num_known(self) -> int:
        """How many pairs of situation and action it can tell."""
        return int((self.effect >= 0).sum())


def learn_local_dynamics(locality: Locality, parts: Iterable[Part], num_actions: int) -> LocalDynamics:
    """Learn from the recorded steps of graphs, one after the other; each different step counts once.

    Args:
        locality: Of the world.
        parts: Recorded ones.
        num_actions: How many there are, A.
    """
    shape = locality.num_situations, num_actions
    effect, changes = np.full(shape, _NEVER, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    for part in parts:
        start, next_state, _ = part.graph.edges
        pairs = np.repeat(np.arange(len(start) - 1), np.diff(start))
        for first in range(0, len(pairs), _AT_ONCE):
            state, action = np.divmod(pairs[first : first + _AT_ONCE], num_actions)
            target = next_state[first : first + _AT_ONCE].astype(np.int64)
            before, after = part.observe(state), part.observe(target)
            _take_in(effect, locality.situation(before), action, locality.effect(before, after))
            has_changed = state != target
            changes[locality.situation(before)[has_changed], action[has_changed]] = True
    return LocalDynamics(effect, changes)


def predict(
    dynamics: LocalDynamics, locality: Locality, states: NDArray[Any], actions: NDArray[np.integer[Any]]
) -> NDArray[Any]:
    """What actions (B,) make of states (B, ...), of the same shape; where that is not known, they stay as they are."""
    effect = dynamics.effect[locality.situation(states), actions]
    is_known, after = effect >= 0, states.copy()
    if is_known.any():
        configurations, poses = locality.split(states[is_known])
        after[is_known] = locality.join(*locality.after(configurations, poses, effect[is_known]))
    return after


def _take_in(
    known: NDArray[np.int64], situation: NDArray[np.int64], action: NDArray[np.int64], effect: NDArray[np.int64]
) -> None:
    """Enter effects in the table; one that differs from what is there makes the entry ``NOT_LOCAL`` for good."""
    for one_situation, one_action, one_effect in np.unique(np.stack([situation, action, effect]), axis=1).T:
        there = known[one_situation, one_action]
        known[one_situation, one_action] = one_effect if there in (_NEVER, one_effect) else NOT_LOCAL
