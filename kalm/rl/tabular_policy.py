"""A policy that acts by a solver's solution in states that were recorded, and at random elsewhere (TEDUO, table 2).

It is what the paper's first two steps alone give: no network, nothing learned that could be carried over to a state
or a goal that the data did not have. In a grid that was recorded but in a state that was not, in another grid, and
under a goal that was not solved, an action is drawn uniformly; so it is everywhere for goals that no state meets. With
an abstraction, states that do not differ in what matters to a goal are one state, recorded or not (TEDUO, figure 5).

Shape letters: B episodes that run side by side, S states of a part, A actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.specs import Spec
from kalm.envs.base import Domain
from kalm.envs.simulation import Episode, EpisodeResult, evaluate
from kalm.rl.planning.empirical_graph import GRID, RecordedParts
from kalm.rl.planning.local_dynamics import LocalDynamics, learn_local_dynamics
from kalm.rl.planning.solution_tables import AbstractSolutions, MetStates, RecordedSolutions
from kalm.rl.planning.solvers import ShortestPath, Solver
from kalm.runs.evaluated import EvaluatedPolicy
from kalm.store.reader import RolloutStore


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
        abstraction: bool = False,
        max_pairs: int | None = None,
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
            abstraction: Whether goals are solved on states that are abstracted with the goal in mind, of all parts
                together.
            max_pairs: It knows only the store's first transitions, until they have so many distinct pairs of state and
                action (TEDUO, figure 5: 250 to 3000); null knows all.
            at_random: What is drawn from in unknown states: ``uniform``, all actions (paper), or ``changing``, those
                that were seen to change something wherever the agent faced and carried the same.
            seed: Of the luck of every episode, together with the episode's own seed.
            num_evaluation_envs: Episodes that run side by side; the results do not depend on it.
        """
        super().__init__(num_evaluation_envs)
        self._num_actions = spec.action_size
        self._path, self._label, self._part_key = Path(store), label, part_key
        self._solver = ShortestPath() if solver is None else solver
        self._abstraction, self._max_pairs = abstraction, max_pairs
        self._at_random, self._seed = at_random, seed
        self._table: RecordedSolutions | AbstractSolutions | None = None

    def run_episodes(self, domain: Domain, episodes: Sequence[Episode], number: int = 0) -> list[EpisodeResult]:
        """Act in every episode; there is one policy, whatever ``number``."""
        table = self._table = self._table or self._make_table(domain)
        dynamics = None
        if self._at_random == "changing":
            if domain.locality is None:
                raise DataError(f"at_random is changing, but {domain.name} does not say what its actions depend on")
            dynamics = learn_local_dynamics(domain.locality, table.parts, self._num_actions)
        luck = [np.random.default_rng([self._seed, episode.seed]) for episode in episodes]

        def act(observations: NDArray[Any], rows: list[int], info: dict[str, Any]) -> NDArray[np.int64]:
            allowed = self._allowed(domain, observations, dynamics)
            for place, row in enumerate(rows):
                best = table.best(observations[place], episodes[row].instructed.goal)
                if best is not None:
                    allowed[place] = best
            return np.array([luck[row].choice(np.flatnonzero(of)) for row, of in zip(rows, allowed, strict=True)])

        return evaluate(act, domain, episodes, self.num_evaluation_envs)

    def _make_table(self, domain: Domain) -> RecordedSolutions | AbstractSolutions:
        store = RolloutStore(self._path)
        parts, met = RecordedParts(store, self._part_key, self._max_pairs), MetStates(store, self._label)
        if self._abstraction:
            return AbstractSolutions(domain, store, parts, met, self._solver)
        return RecordedSolutions(store, parts, met, self._solver)

    def _allowed(self, domain: Domain, observations: NDArray[Any], dynamics: LocalDynamics | None) -> NDArray[np.bool_]:
        """Which actions are drawn from in unknown states, shape (B, A)."""
        every = np.ones((len(observations), self._num_actions), dtype=np.bool_)
        if dynamics is None or domain.locality is None:
            return every
        changing = dynamics.changes[domain.locality.situation(observations)]
        return np.where(changing.any(axis=1, keepdims=True), changing, every)
