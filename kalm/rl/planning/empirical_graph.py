"""The graph of what was recorded: states as nodes, and where each action was seen to lead (TEDUO, section 3.2).

It is the empirical Markov decision process of a store whose states stand in a table. A plan goes by the most frequent
successor, argmax_s' P(s' | s, a), as the paper's does; expectations go by the counts. Nothing here asks a simulator.

A store falls into parts that share no state, such as grids, and each is read and solved on its own: what is needed in
memory does not grow with their number.

Shape letters: S states of a part, A actions, E edges, N transitions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core import names
from kalm.core.errors import DataError
from kalm.core.specs import DiscreteAction
from kalm.store import layout
from kalm.store.reader import RolloutStore

GRID = "grid"  # what the provenance of a rollout calls the place where it was made
UNKNOWN = -1


class Edges(NamedTuple):
    """Where actions lead and how often: those of state s and action a are ``start[s * A + a]`` to the next start.

    Attributes:
        start: Int64, shape (S * A + 1,).
        next_state: Int32, shape (E,).
        probability: Share of the times that the action was taken in the state, float64, shape (E,).
    """

    start: NDArray[np.int64]
    next_state: NDArray[np.int32]
    probability: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Graph:
    """A known part of a Markov decision process with S states.

    Attributes:
        successor: Most frequent successor of each state and action, int32, shape (S, A); ``UNKNOWN`` where the action
            was never taken.
        recorded_edges: All successors; None where there is one at most.
    """

    successor: NDArray[np.int32]
    recorded_edges: Edges | None = None

    @property
    def num_states(self) -> int:
        """How many, S."""
        return len(self.successor)

    @property
    def num_actions(self) -> int:
        """How many, A."""
        return int(self.successor.shape[1])

    @cached_property
    def changes(self) -> NDArray[np.bool_]:
        """Which actions were seen to change something, shape (S, A)."""
        return (self.successor != UNKNOWN) & (self.successor != np.arange(self.num_states)[:, None])

    @cached_property
    def edges(self) -> Edges:
        """All successors."""
        if self.recorded_edges is not None:
            return self.recorded_edges
        is_known = (self.successor != UNKNOWN).reshape(-1)
        next_state = self.successor.reshape(-1)[is_known]
        return Edges(np.append(0, np.cumsum(is_known)), next_state, np.ones(len(next_state)))

    @cached_property
    def predecessors(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The states that have state s as a successor: ``[1][[0][s] : [0][s + 1]]``."""
        return _turned_round(self.successor)


def graph_of(
    state: NDArray[np.int64],
    action: NDArray[np.int64],
    next_state: NDArray[np.int64],
    num_states: int,
    num_actions: int,
) -> Graph:
    """The graph of N transitions: each array has shape (N,). Of equally frequent successors the first one counts."""
    pair = state * num_actions + action
    edge, count = np.unique(pair * num_states + next_state, return_counts=True)
    pair, target = np.divmod(edge, num_states)
    start = _starts(pair, num_states * num_actions)
    taken = np.add.reduceat(count, start[:-1][np.diff(start) > 0]) if len(pair) else count
    probability = count / np.repeat(taken, np.diff(start)[np.diff(start) > 0])
    # Sorted by pair, then from the rarest to the most frequent, then from the last to the first: the last entry stays.
    order = np.lexsort((-target, count, pair))
    successor = np.full(num_states * num_actions, UNKNOWN, dtype=np.int32)
    successor[pair[order]] = target[order]
    recorded = Edges(start, target.astype(np.int32), probability)
    return Graph(successor.reshape(num_states, num_actions), recorded)


class Walks(NamedTuple):
    """Recorded rollouts of a part, one after the other: walk w has the steps ``first[w]`` to ``first[w + 1] - 1``.

    Attributes:
        first: Int64, shape (number of walks + 1,).
        state: Number of the state before each step, int64, shape (N,).
        action: Of each step, int64, shape (N,).
        next_state: Number of the state after it, int64, shape (N,).
    """

    first: NDArray[np.int64]
    state: NDArray[np.int64]
    action: NDArray[np.int64]
    next_state: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Part:
    """States that are connected with each other and with no others: one grid, say.

    Attributes:
        name: Of the part; parts are numbered in the order of their names.
        graph: What is known of it.
        states: Row of each of its states in the store's state table, int64, shape (S,); ``UNKNOWN`` for one that was
            never recorded.
        is_start: Whether an agent may set out from a state: recorded rollouts begin in it, or, where more is known of
            states, in one that differs by the agent's pose alone; shape (S,).
        observe: Turns numbers of its states, int64 of shape (B,), into what is seen there, shape (B, ...).
        walks: What was recorded, in the order in which it was.
    """

    name: str
    graph: Graph
    states: NDArray[np.int64]
    is_start: NDArray[np.bool_]
    observe: Callable[[NDArray[np.int64]], NDArray[Any]]
    walks: Walks

    def observe_next(
        self, states: NDArray[np.int64], actions: NDArray[np.int64], next_states: NDArray[np.int64]
    ) -> NDArray[Any]:
        """What is seen after steps from ``states`` that lead to ``next_states``, each (B,)."""
        return self.observe(next_states)

    def used_for(self, is_goal: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """States that matter for a goal, which is met where ``is_goal`` says, shape (S,) each; None means all."""
        return None


class RecordedParts:
    """The parts of a store, one after the other.

    Attributes:
        names: Of the parts, in order.
        part_of_state: Number of the part of each row of the state table, int32; ``UNKNOWN`` for one of no transition.
    """

    def __init__(self, store: RolloutStore, key: str = GRID, max_pairs: int | None = None) -> None:
        """Look up where each rollout belongs; no graph is made yet.

        Args:
            store: With a state table and discrete actions.
            key: In the provenance of the rollouts: equal values, equal part. Where it is absent, rollouts that share a
                state belong together.
            max_pairs: Take only the first transitions, until they have so many distinct pairs of state and action; None
                takes all.

        Raises:
            DataError: If the store is of another kind, a state occurs in two parts, or it has fewer pairs.
        """
        if layout.STATES not in layout.row_tables(store.spec) or not isinstance(store.spec.action, DiscreteAction):
            raise DataError(
                f"{store.path} has observations of the kind {store.spec.observation.kind} and actions of the kind "
                f"{store.spec.action.kind}; planning needs states that repeat (grids or texts) and discrete actions"
            )
        self._store, self._num_actions = store, store.spec.action.size
        self._num_rows = len(store) if max_pairs is None else _rows_of_pairs(store, self._num_actions, max_pairs)
        of_rollout = _values(store, key)
        if of_rollout is None:
            of_rollout = [f"{number:06d}" for number in _connected(store)]
        self.names = sorted(set(of_rollout))
        number_of = {name: number for number, name in enumerate(self.names)}
        self._part_of_rollout = np.array([number_of[name] for name in of_rollout], dtype=np.int32)
        self.part_of_state = np.full(store.num_states, UNKNOWN, dtype=np.int32)
        for number in range(len(self)):
            state, _, next_state = self.transitions(number)
            found = np.unique(np.concatenate([state, next_state]))
            if (self.part_of_state[found] != UNKNOWN).any():
                both = f"{self.names[self.part_of_state[found].max()]} and {self.names[number]}"
                raise DataError(f"{store.path}: the parts {both} by {key!r} share states; name another key")
            self.part_of_state[found] = number

    def __len__(self) -> int:
        """How many parts there are."""
        return len(self.names)

    def __iter__(self) -> Iterator[Part]:
        """Each part in turn."""
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Part:
        """Part ``number``, in [0, number of parts)."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        states = np.flatnonzero(self.part_of_state == number)
        state, action, next_state = self.transitions(number)
        lengths = self._spans(number)[1]
        first = np.append(0, np.cumsum(lengths))
        walks = Walks(first, np.searchsorted(states, state), action, np.searchsorted(states, next_state))
        graph = graph_of(walks.state, walks.action, walks.next_state, len(states), self._num_actions)

        def observe(chosen: NDArray[np.int64]) -> NDArray[Any]:
            return self._store.observations(torch.from_numpy(states[chosen]))

        is_start = np.zeros(len(states), dtype=np.bool_)
        is_start[walks.state[first[:-1]]] = True
        return Part(self.names[number], graph, states, is_start, observe, walks)

    def transitions(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """State, action and next state of each transition of a part, by rows of the state table."""
        start, length = self._spans(number)
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        rows = torch.from_numpy(np.repeat(start, length) + within)
        state, action, next_state = self._store.read((names.STATE, names.ACTION, names.NEXT_STATE), rows)
        return state.long().numpy(), action.numpy(), next_state.long().numpy()

    def _spans(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First row and number of transitions of each rollout of a part, as far as they are taken."""
        rollouts, chosen = self._store.rollouts, np.flatnonzero(self._part_of_rollout == number)
        start, length = (rollouts[key].numpy()[chosen].astype(np.int64) for key in ("start", "length"))
        length = np.clip(self._num_rows - start, 0, length)
        return start[length > 0], length[length > 0]


def _values(store: RolloutStore, key: str) -> list[str] | None:
    """What the provenance of each rollout has under a key, spelled so that numbers sort; None if any lacks it."""
    values = []
    with (store.path / layout.PROVENANCE).open("rb") as file:
        for line in file:
            value = json.loads(line).get(key)
            if value is None:
                return None
            values.append(f"{value:06d}" if isinstance(value, int) else str(value))
    return values


def _rows_of_pairs(store: RolloutStore, num_actions: int, max_pairs: int) -> int:
    """How many of the first transitions have so many distinct pairs of state and action."""
    state, action = (store.transitions[key].numpy().astype(np.int64) for key in (names.STATE, names.ACTION))
    _, first = np.unique(state * num_actions + action, return_index=True)
    if not 1 <= max_pairs <= len(first):
        raise DataError(f"max_pairs is {max_pairs}; {store.path} has {len(first)} distinct pairs of state and action")
    return int(np.append(np.sort(first), len(state))[max_pairs])


def _connected(store: RolloutStore) -> NDArray[np.int64]:
    """A number for each rollout, the same for rollouts that share a state."""
    transitions = store.transitions
    state, next_state = (transitions[key].numpy() for key in (names.STATE, names.NEXT_STATE))
    of_state = _components(state, next_state, store.num_states)
    numbers: NDArray[np.int64] = of_state[state[store.rollouts["start"].numpy()]]
    return numbers


@numba.njit(cache=True)
def _turned_round(successor: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where the predecessors of each state begin, (S + 1,), and all of them, each in the order of their numbers."""
    num_states, num_actions = successor.shape
    start = np.zeros(num_states + 2, dtype=np.int64)
    for state in range(num_states):
        for action in range(num_actions):
            target = successor[state, action]
            if target >= 0 and target != state:
                start[target + 2] += 1
    start = np.cumsum(start)
    predecessor = np.empty(start[-1], dtype=np.int32)
    for state in range(num_states):
        for action in range(num_actions):
            target = successor[state, action]
            if target >= 0 and target != state:
                predecessor[start[target + 1]] = state
                start[target + 1] += 1  # ends as the start of the state after it
    return start[:-1], predecessor


@numba.njit(cache=True)
def _components(one: NDArray[np.int32], other: NDArray[np.int32], num_states: int) -> NDArray[np.int64]:
    """The least state that each state is connected with by pairs of states, shape (S,): union-find."""
    root = np.arange(num_states)
    for pair in range(len(one)):
        first, second = one[pair], other[pair]
        while root[first] != first:
            root[first] = root[root[first]]
            first = root[first]
        while root[second] != second:
            root[second] = root[root[second]]
            second = root[second]
        root[max(first, second)] = min(first, second)
    for state in range(num_states):  # a root is the least of its states, so it is settled before them
        root[state] = root[root[state]]
    return root


def _starts(sorted_or_not: NDArray[Any], size: int) -> NDArray[np.int64]:
    """Where the entries of each number in [0, size) begin once they are sorted, shape (size + 1,)."""
    return np.append(0, np.cumsum(np.bincount(sorted_or_not, minlength=size))).astype(np.int64)
