"""A policy that acts by a solver's solution in states that were recorded, and at random elsewhere (TEDUO, table 2).

It is what the paper's first two steps alone give: no network, nothing learned that could be carried over to a state
or a goal that the data did not have. In a grid that was recorded but in a state that was not, in another grid, and
under a goal that was not solved, an action is drawn uniformly; so it is everywhere for goals that no state meets.

Shape letters: B episodes that run side by side, S states of a part, A actions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.goal import Goal
from kalm.core.specs import Spec
from kalm.envs.base import Domain
from kalm.envs.simulation import Episode, EpisodeResult, evaluate
from kalm.rl.planning.empirical_graph import GRID, RecordedParts
from kalm.rl.planning.local_dynamics import LocalDynamics, learn_local_dynamics
from kalm.rl.planning.solvers import ShortestPath, Solver
from kalm.runs.evaluated import EvaluatedPolicy
from kalm.store.reader import RolloutStore

_MOST_SOLVED = 512  # pairs of a goal and a part in memory
_AT_ONCE = 8192  # states that are read together


class TabularPolicy(EvaluatedPolicy):
    """Recorded states by their solution, others at random. For ``test`` with ``--ckpt_path null``: it has no weights.

    Which goal an instruction means is looked up in the label by the goal itself, as the paper's tables do.
    """

    def __init__(
        self,
        spec: Spec,
        store: str,
        label: str,
        solver: Solver | None = None,
        part_key: str = GRID,
        at_random: Literal["uniform", "changing"] = "uniform",
        seed: int = 0,
        num_evaluation_envs: int = 64,
    ) -> None:
        """Say what it acts by; the store is opened when it first acts.

        Args:
            spec: Sizes of the domain, linked to the data module's.
            store: Folder of the rollout store.
            label: Name of its label that says which states meet which goals.
            solver: How goals are solved; by default shortest paths, which are what the paper's converges to.
            part_key: In the provenance of the recorded rollouts: equal values, equal part.
            at_random: What is drawn from in unknown states: ``uniform``, all actions (paper), or ``changing``, those
                that were seen to change something wherever the agent faced and carried the same.
            seed: Of the luck of every episode, together with the episode's own seed.
            num_evaluation_envs: Episodes that run side by side; the results do not depend on it.
        """
        super().__init__(num_evaluation_envs)
        self._num_actions = spec.action_size
        self._path, self._label, self._part_key = Path(store), label, part_key
        self._solver = ShortestPath() if solver is None else solver
        self._at_random, self._seed = at_random, seed
        self._table: _Table | None = None

    def run_episodes(self, domain: Domain, episodes: Sequence[Episode], number: int = 0) -> list[EpisodeResult]:
        """Act in every episode; there is one policy, whatever ``number``."""
        if self._table is None:
            store = RolloutStore(self._path)
            self._table = _Table(store, self._label, self._solver, self._part_key)
        dynamics = None
        if self._at_random == "changing":
            if domain.locality is None:
                raise DataError(f"at_random is changing, but {domain.name} does not say what its actions depend on")
            dynamics = learn_local_dynamics(domain.locality, self._table.parts, self._num_actions)
        luck = [np.random.default_rng([self._seed, episode.seed]) for episode in episodes]
        table = self._table

        def act(observations: NDArray[Any], rows: list[int], info: dict[str, Any]) -> NDArray[np.int64]:
            allowed = self._allowed(domain, observations, dynamics)
            for place, row in enumerate(rows):
                best = table.best(observations[place], episodes[row].instructed.goal)
                if best is not None:
                    allowed[place] = best
            return np.array([luck[row].choice(np.flatnonzero(of)) for row, of in zip(rows, allowed, strict=True)])

        return evaluate(act, domain, episodes, self.num_evaluation_envs)

    def _allowed(self, domain: Domain, observations: NDArray[Any], dynamics: LocalDynamics | None) -> NDArray[np.bool_]:
        """Which actions are drawn from in unknown states, shape (B, A)."""
        every = np.ones((len(observations), self._num_actions), dtype=np.bool_)
        if dynamics is None or domain.locality is None:
            return every
        changing = dynamics.changes[domain.locality.situation(observations)]
        return np.where(changing.any(axis=1, keepdims=True), changing, every)


class _Table:
    """Best actions in the states of a store, solved when they are first asked for."""

    def __init__(self, store: RolloutStore, label: str, solver: Solver, part_key: str) -> None:
        labels = store.labels(label)
        if labels.goal is None or labels.state is None:
            raise DataError(f"label {label!r} of {store.path} is about rollouts; one about goals and states is needed")
        self.parts = RecordedParts(store, part_key)
        self._solver = solver
        met = labels.met.numpy()
        self._goal, self._state = labels.goal.numpy()[met], labels.state.numpy()[met]
        self._goal_rows: dict[str, list[int]] = {}
        for number, row in enumerate(labels.goals):
            self._goal_rows.setdefault(_spelled(row["goal"]), []).append(number)
        self._row_of: dict[bytes, int] = {}
        for first in range(0, store.num_states, _AT_ONCE):
            rows = torch.arange(first, min(first + _AT_ONCE, store.num_states))
            for row, state in zip(rows.tolist(), store.observations(rows), strict=True):
                self._row_of[_digest(state)] = row
        # Parts number their states in the order of the table.
        part = self.parts.part_of_state
        order = np.argsort(part, kind="stable")
        self._place = np.empty(len(part), dtype=np.int64)
        self._place[order] = np.arange(len(part)) - np.searchsorted(part[order], part[order])
        self._solved: dict[tuple[int, Goal], NDArray[np.bool_] | None] = {}

    def best(self, state: NDArray[Any], goal: Goal) -> NDArray[np.bool_] | None:
        """The best actions in a state, shape (A,); None if it, or a way from it to the goal, is not known."""
        row = self._row_of.get(_digest(state))
        if row is None:
            return None
        number = int(self.parts.part_of_state[row])
        if (number, goal) not in self._solved:
            if len(self._solved) == _MOST_SOLVED:
                self._solved.pop(next(iter(self._solved)))
            self._solved[number, goal] = self._solve(number, goal)
        optimal = self._solved[number, goal]
        if optimal is None:
            return None
        best: NDArray[np.bool_] = optimal[self._place[row]]
        return best if best.any() else None

    def _solve(self, number: int, goal: Goal) -> NDArray[np.bool_] | None:
        rows = self._goal_rows.get(_spelled(goal.to_json()), [])
        met = np.unique(self._state[np.isin(self._goal, rows)])
        met = met[self.parts.part_of_state[met] == number]
        if not len(met):
            return None
        part = self.parts[number]
        return self._solver.solve(part.graph, np.isin(part.states, met)).optimal


def _spelled(goal: Any) -> str:
    return json.dumps(goal, sort_keys=True)


def _digest(state: NDArray[Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(state).tobytes(), digest_size=16).digest()
