"""The best actions in states, looked up: a goal is solved when it is first asked for.

A state is known by what is seen of it. ``RecordedSolutions`` solves a goal in each part of a store, on its states as
they are. ``AbstractSolutions`` solves it once, on all parts together, whose states are first abstracted with the goal
in mind (TEDUO, section 3.1.1): what does not matter to the goal no longer keeps experiences apart, so that fewer of
them do.

Shape letters: S states, N transitions, A actions.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.goal import Goal
from kalm.envs.base import Domain
from kalm.rl.planning.empirical_graph import UNKNOWN, RecordedParts, graph_of
from kalm.rl.planning.solvers import Solver
from kalm.store.reader import RolloutStore

_MOST_SOLVED = 512  # solutions in memory
_AT_ONCE = 8192  # states that are read together


class MetStates:
    """In which states of a store a label says that a goal is met."""

    def __init__(self, store: RolloutStore, label: str) -> None:
        """Open the label.

        Raises:
            DataError: If there is none of the name, or it is about rollouts.
        """
        labels = store.labels(label)
        if labels.goal is None or labels.state is None:
            raise DataError(f"label {label!r} of {store.path} is about rollouts; one about goals and states is needed")
        met = labels.met.numpy()
        self._goal, self._state = labels.goal.numpy()[met], labels.state.numpy()[met]
        self._goal_rows: dict[str, list[int]] = {}
        for number, row in enumerate(labels.goals):
            self._goal_rows.setdefault(_spelled(row["goal"]), []).append(number)

    def of(self, goal: Goal) -> NDArray[np.int64]:
        """Rows of the state table, each once and in order; none for a goal that the label does not have."""
        rows = self._goal_rows.get(_spelled(goal.to_json()), [])
        return np.unique(self._state[np.isin(self._goal, rows)]).astype(np.int64)


class RecordedSolutions:
    """Best actions in the states of a store, part by part."""

    def __init__(self, store: RolloutStore, parts: RecordedParts, met: MetStates, solver: Solver) -> None:
        """Look at every state once."""
        self.parts, self._met, self._solver = parts, met, solver
        self._row_of: dict[bytes, int] = {}
        for first in range(0, store.num_states, _AT_ONCE):
            rows = torch.arange(first, min(first + _AT_ONCE, store.num_states))
            for row, state in zip(rows.tolist(), store.observations(rows), strict=True):
                self._row_of[_digest(state)] = row
        # Parts number their states in the order of the table.
        part = parts.part_of_state
        order = np.argsort(part, kind="stable")
        self._place = np.empty(len(part), dtype=np.int64)
        self._place[order] = np.arange(len(part)) - np.searchsorted(part[order], part[order])
        self._solved: dict[tuple[int, Goal], NDArray[np.bool_] | None] = {}

    def best(self, state: NDArray[Any], goal: Goal) -> NDArray[np.bool_] | None:
        """The best actions in a state, shape (A,); None if it, or a way from it to the goal, is not known."""
        row = self._row_of.get(_digest(state))
        number = UNKNOWN if row is None else int(self.parts.part_of_state[row])
        if row is None or number == UNKNOWN:
            return None
        if (number, goal) not in self._solved:
            _make_room(self._solved)
            self._solved[number, goal] = self._solve(number, goal)
        optimal = self._solved[number, goal]
        if optimal is None:
            return None
        best: NDArray[np.bool_] = optimal[self._place[row]]
        return best if best.any() else None

    def _solve(self, number: int, goal: Goal) -> NDArray[np.bool_] | None:
        met = self._met.of(goal)
        met = met[self.parts.part_of_state[met] == number]
        if not len(met):
            return None
        part = self.parts[number]
        return self._solver.solve(part.graph, np.isin(part.states, met)).optimal


class AbstractSolutions:
    """Best actions in abstracted states, of all parts together."""

    def __init__(
        self, domain: Domain, store: RolloutStore, parts: RecordedParts, met: MetStates, solver: Solver
    ) -> None:
        """Read all transitions and all states that they have."""
        self.parts, self._domain, self._met, self._solver = parts, domain, met, solver
        self._num_actions = domain.spec.action_size
        found = [parts.transitions(number) for number in range(len(parts))]
        self._state, self._action, self._next_state = (
            np.concatenate([columns[place] for columns in found]) for place in range(3)
        )
        self._rows = np.unique(np.concatenate([self._state, self._next_state]))
        self._observations = store.observations(torch.from_numpy(self._rows))
        self._solved: dict[Goal, dict[bytes, NDArray[np.bool_]]] = {}

    def best(self, state: NDArray[Any], goal: Goal) -> NDArray[np.bool_] | None:
        """The best actions in a state, shape (A,); None if nothing like it, or no way from there, is known."""
        if goal not in self._solved:
            _make_room(self._solved)
            self._solved[goal] = self._solve(goal)
        if not self._solved[goal]:
            return None
        return self._solved[goal].get(_digest(self._domain.abstracted(state[None], goal)[0]))

    def _solve(self, goal: Goal) -> dict[bytes, NDArray[np.bool_]]:
        """Abstract states from which the goal can be reached, by what is seen of them, with their best actions."""
        met = np.isin(self._rows, self._met.of(goal))
        if not met.any():
            return {}
        number_of: dict[bytes, int] = {}
        seen = self._domain.abstracted(self._observations, goal)
        number = np.array([number_of.setdefault(_digest(state), len(number_of)) for state in seen])
        state, next_state = (number[np.searchsorted(self._rows, rows)] for rows in (self._state, self._next_state))
        graph = graph_of(state, self._action, next_state, len(number_of), self._num_actions)
        is_goal = np.zeros(len(number_of), dtype=np.bool_)
        is_goal[number[met]] = True
        solution = self._solver.solve(graph, is_goal)
        return {seen: solution.optimal[row] for seen, row in number_of.items() if solution.has_best[row]}


def _make_room(solved: dict[Any, Any]) -> None:
    if len(solved) == _MOST_SOLVED:
        solved.pop(next(iter(solved)))


def _spelled(goal: Any) -> str:
    return json.dumps(goal, sort_keys=True)


def _digest(state: NDArray[Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(state).tobytes(), digest_size=16).digest()
