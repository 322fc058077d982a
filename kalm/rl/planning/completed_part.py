"""A part of a store completed by a local model: its states, its graph, and what goals need to know of both.

Three kinds of nodes. *Recorded states* come first, and what was recorded of them always holds. *Predicted states* are
poses in configurations of which all poses are in the graph. *Leaves* stand for what an interaction makes that leads to
none of these, such as a thing put down anywhere: a plan can end there, and does not go on from there. Leaves of one
kind are one node, because there are as many as there are free tiles for each thing in each configuration; what it looks
like where a plan ended is worked out when it is asked for.

Shape letters: S states, A actions, C configurations, B chosen ones, I interactions, K kinds of leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kalm.envs.locality import Aspect, Locality
from kalm.rl.planning.empirical_graph import UNKNOWN, Edges, Graph, Part


@dataclass(frozen=True, eq=False)
class CompletedGraph(Graph):
    """A graph of recorded and of predicted edges.

    Attributes:
        recorded: The recorded edges of its first states.
    """

    recorded: Edges | None = None

    @cached_property
    def edges(self) -> Edges:
        """Predicted edges, and in place of them the recorded ones where an action was taken."""
        assert self.recorded is not None
        num_pairs = len(self.recorded.start) - 1
        is_predicted = (self.successor != UNKNOWN).reshape(-1)
        is_predicted[:num_pairs] &= np.diff(self.recorded.start) == 0
        count = is_predicted.astype(np.int64)
        count[:num_pairs] += np.diff(self.recorded.start)
        start = np.append(0, np.cumsum(count))
        next_state, probability = np.empty(start[-1], dtype=np.int32), np.ones(start[-1])
        predicted = start[:-1][is_predicted]
        next_state[predicted] = self.successor.reshape(-1)[is_predicted]
        is_recorded = np.ones(start[-1], dtype=np.bool_)
        is_recorded[predicted] = False
        next_state[is_recorded], probability[is_recorded] = self.recorded.next_state, self.recorded.probability
        return Edges(start, next_state, probability)


class Leaves(NamedTuple):
    """What interactions make that lead out of the graph; one of them for each kind and configuration is kept.

    Attributes:
        kind: In [0, K), int64, shape (I,).
        state: In which it happens, int64, shape (I,).
        effect: As the world numbers effects, int64, shape (I,).
        num_kinds: K.
    """

    kind: NDArray[np.int64]
    state: NDArray[np.int64]
    effect: NDArray[np.int64]
    num_kinds: int

    def chosen(self, is_goal: NDArray[np.bool_]) -> NDArray[np.int64]:
        """One interaction of each kind, (K,), that happens where a goal is not met; ``UNKNOWN`` if there is none."""
        found = np.full(self.num_kinds, UNKNOWN, dtype=np.int64)
        unmet = np.flatnonzero(~is_goal[self.state])[::-1]
        found[self.kind[unmet]] = unmet  # the first of each kind comes last, and stays
        return found


class Representatives(NamedTuple):
    """States that stand for others.

    Attributes:
        state: Their numbers, int64, shape (B,).
        of_state: Which of them stands for each state, in [0, B), int64, shape (S,).
        of_predicted: Those that stand for a predicted state.
    """

    state: NDArray[np.int64]
    of_state: NDArray[np.int64]
    of_predicted: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CompletedPart(Part):
    """A part with all that a local model predicts: recorded states, predicted ones, leaves.

    Attributes:
        locality: Of the world.
        configurations: Recorded ones, then predicted ones, uint8, shape (C, K).
        configuration: Which of them each state has, int64, shape (S,) without leaves, as the next two.
        pose: Of the agent in each state.
        situation: What the agent faces and carries in each state.
        effects: What each action does in each situation, int64, shape (W, A).
        leaves: Kind k of them is node S + k.
    """

    locality: Locality
    configurations: NDArray[np.uint8]
    configuration: NDArray[np.int64]
    pose: NDArray[np.int64]
    situation: NDArray[np.int64]
    effects: NDArray[np.int64]
    leaves: Leaves
    _found: dict[Aspect, Representatives] = field(default_factory=dict)

    @property
    def num_states(self) -> int:
        """How many there are without leaves, S."""
        return len(self.configuration)

    @cached_property
    def num_recorded(self) -> int:
        """How many of its states were recorded; they come first."""
        return int((self.states != UNKNOWN).sum())

    @cached_property
    def _carried(self) -> NDArray[np.int64]:
        """In each configuration, shape (C,)."""
        return self.locality.carried(self.configurations)

    @cached_property
    def _exchanges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """States before and after steps that change what is carried, leaves aside."""
        states, next_states = [], []
        for action in range(self.graph.num_actions):
            target = self.graph.successor[: self.num_states, action]
            state = np.flatnonzero((target != UNKNOWN) & (target < self.num_states))
            hands = (self._carried[self.configuration[at]] for at in (state, target[state]))
            state = state[np.not_equal(*hands)]
            states.append(state)
            next_states.append(target[state].astype(np.int64))
        return np.concatenate(states), np.concatenate(next_states)

    def used_for(self, is_goal: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """States that matter for a goal, shape (S + K,).

        These are all but the predicted ones in which something is carried whose taking up or putting down does not meet
        the goal: from there one could only bring it back first.

        Args:
            is_goal: Where the goal is met, shape (S + K,).
        """
        before, after = self._exchanges
        meets = np.flatnonzero(is_goal[after] & ~is_goal[before])
        ends = is_goal[self.num_states + self.leaves.kind] & ~is_goal[self.leaves.state]
        states = np.concatenate([before[meets], after[meets], self.leaves.state[ends]])
        wanted = np.append(np.unique(self._carried[self.configuration[states]]), 0)
        is_used = np.isin(self._carried, wanted)
        is_used[: 1 + self.configuration[: self.num_recorded].max()] = True
        return np.append(is_used[self.configuration], np.ones(self.leaves.num_kinds, dtype=np.bool_))

    def prepare(self, aspects: Iterable[Aspect]) -> None:
        """Work out what goals will need, once, before threads share it."""
        _ = self.graph.predecessors, self.num_recorded, self._exchanges
        for aspect in aspects:
            self.representatives(aspect)

    def representatives(self, aspect: Aspect) -> Representatives:
        """States that stand for all others, as far as an aspect of a state matters; leaves are none of them."""
        if aspect not in self._found:
            every = np.arange(self.num_states)
            if aspect == "arrangement":
                _, same = np.unique(self.locality.arrangements(self.configurations), return_inverse=True)
                value = same[self.configuration]
            else:
                value = every if aspect == "state" else getattr(self, aspect)
            _, first, of_state = np.unique(value, return_index=True, return_inverse=True)
            self._found[aspect] = Representatives(first, of_state, np.unique(of_state[self.num_recorded :]))
        return self._found[aspect]

    def made_by(self, states: NDArray[np.int64], effects: NDArray[np.int64]) -> NDArray[Any]:
        """What effects (B,) make of states (B,)."""
        configurations = self.configurations[self.configuration[states]]
        return self.locality.join(*self.locality.after(configurations, self.pose[states], effects))

    def observe_next(
        self, states: NDArray[np.int64], actions: NDArray[np.int64], next_states: NDArray[np.int64]
    ) -> NDArray[Any]:
        """What is seen after steps that lead to ``next_states``; leaves are worked out."""
        seen = self.observe(np.where(next_states < self.num_states, next_states, states))
        ends = np.flatnonzero(next_states >= self.num_states)
        seen[ends] = self.made_by(states[ends], self.effects[self.situation[states[ends]], actions[ends]])
        return seen
