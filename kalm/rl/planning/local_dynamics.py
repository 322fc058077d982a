"""A local model of the dynamics, learned from recorded steps alone, and graphs that it completes.

Data of an expert says of most states what one action does there. But what an action does is a local matter: stepping
ahead onto an empty tile is the same wherever it is. So the model is a table from (situation, action) to the effect that
was seen there, kept only where it was the same each time; a world says what a situation and an effect are
(``kalm.envs.locality``), and nothing else. A step that it cannot tell it does not predict.

A completed graph has every pose that can be reached in the recorded configurations, and all predicted steps between
them: interactions too where the configuration that they make was recorded. What was recorded itself always holds.

Shape letters: S states, A actions, C configurations, P poses, W situations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from kalm.envs.locality import NOT_LOCAL, NOWHERE, Aspect, Locality
from kalm.rl.planning.empirical_graph import UNKNOWN, Edges, Graph, Part

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


def _take_in(
    known: NDArray[np.int64], situation: NDArray[np.int64], action: NDArray[np.int64], effect: NDArray[np.int64]
) -> None:
    """Enter effects in the table; one that differs from what is there makes the entry ``NOT_LOCAL`` for good."""
    for one_situation, one_action, one_effect in np.unique(np.stack([situation, action, effect]), axis=1).T:
        there = known[one_situation, one_action]
        known[one_situation, one_action] = one_effect if there in (_NEVER, one_effect) else NOT_LOCAL


@dataclass(frozen=True, eq=False)
class CompletedPart(Part):
    """A part with all that a local model predicts; its recorded states come first, in their order.

    Attributes:
        configurations: Recorded ones, uint8, shape (C, K).
        configuration: Which of them each state has, int64, shape (S,).
        pose: Of the agent in each state, int64, shape (S,).
        situation: What the agent faces and carries in each state, int64, shape (S,).
    """

    configurations: NDArray[np.uint8]
    configuration: NDArray[np.int64]
    pose: NDArray[np.int64]
    situation: NDArray[np.int64]

    def representatives(self, aspect: Aspect) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """States that stand for all others, as far as an aspect of a state matters.

        Returns:
            Numbers of these states, shape (B,), and which of them stands for each state, shape (S,).
        """
        return self._representatives[aspect]

    @cached_property
    def _representatives(self) -> dict[Aspect, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        every = np.arange(len(self.states))
        found: dict[Aspect, tuple[NDArray[np.int64], NDArray[np.int64]]] = {"state": (every, every)}
        for aspect in ("situation", "configuration", "pose"):
            _, first, of_state = np.unique(getattr(self, aspect), return_index=True, return_inverse=True)
            found[aspect] = first, of_state
        return found


def complete(part: Part, locality: Locality, dynamics: LocalDynamics) -> CompletedPart:
    """Add to a recorded part what the model predicts; only states that can be reached from recorded ones are kept."""
    recorded, pose = locality.split(part.observe(np.arange(part.graph.num_states)))
    names, first, configuration = np.unique(locality.names(recorded), return_index=True, return_inverse=True)
    configurations = recorded[first]
    situations = locality.situations(configurations)
    num_poses = situations.shape[1]
    successor = np.full((situations.size, dynamics.num_actions), UNKNOWN, dtype=np.int32)
    for action in range(dynamics.num_actions):
        effect = np.where(situations == NOWHERE, _NEVER, dynamics.effect[situations, action])
        next_name, next_pose = locality.outcomes(configurations, names, effect)
        place = np.minimum(np.searchsorted(names, next_name), len(names) - 1)
        is_known = (effect >= 0) & (names[place] == next_name)
        successor[:, action] = np.where(is_known, place * num_poses + next_pose, UNKNOWN).reshape(-1)
    own = configuration * num_poses + pose  # of the recorded states
    was_taken = part.graph.successor != UNKNOWN
    successor[own] = np.where(was_taken, own[part.graph.successor], successor[own])
    order, number_of = _reached(successor, own)
    kept = successor[order]
    kept = np.where(kept == UNKNOWN, UNKNOWN, number_of[kept])
    states = np.full(len(order), UNKNOWN, dtype=np.int64)
    states[: len(own)] = part.states
    of_configuration, of_pose = np.divmod(order, num_poses)

    def observe(chosen: NDArray[np.int64]) -> NDArray[Any]:
        return locality.join(configurations[of_configuration[chosen]], of_pose[chosen])

    graph = Graph(kept, _with_recorded(kept, part.graph.edges))
    situation = situations.reshape(-1)[order]
    return CompletedPart(part.name, graph, states, observe, configurations, of_configuration, of_pose, situation)


def _with_recorded(successor: NDArray[np.int32], recorded: Edges) -> Edges:
    """Predicted edges, and in place of them the recorded ones where an action was taken."""
    num_pairs = len(recorded.start) - 1
    is_predicted = (successor != UNKNOWN).reshape(-1)
    is_predicted[:num_pairs] &= np.diff(recorded.start) == 0
    count = is_predicted.astype(np.int64)
    count[:num_pairs] += np.diff(recorded.start)
    start = np.append(0, np.cumsum(count))
    next_state, probability = np.empty(start[-1], dtype=np.int32), np.ones(start[-1])
    predicted = start[:-1][is_predicted]
    next_state[predicted] = successor.reshape(-1)[is_predicted]
    is_recorded = np.ones(start[-1], dtype=np.bool_)
    is_recorded[predicted] = False
    next_state[is_recorded], probability[is_recorded] = recorded.next_state, recorded.probability
    return Edges(start, next_state, probability)


@numba.njit(cache=True)
def _reached(successor: NDArray[np.int32], first: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """States that are reached from ``first``, these first; and the place of each state among them, or -1."""
    number_of = np.full(len(successor), -1, dtype=np.int32)
    order = np.empty(len(successor), dtype=np.int64)
    end = 0
    for state in first:
        number_of[state] = end
        order[end] = state
        end += 1
    place = 0
    while place < end:
        for action in range(successor.shape[1]):
            target = successor[order[place], action]
            if target >= 0 and number_of[target] < 0:
                number_of[target] = end
                order[end] = target
                end += 1
        place += 1
    return order[:end].copy(), number_of
