"""Which goals and states a proxy reward learns from at once.

Of each goal half of the states meet it and half do not; half of those that do not meet another goal of its task, which
is where a judge is most easily mistaken.

Shape letters: N states of a goal, S states of the store.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kalm.data.labelled_goals import LabelledGoal, Part, Rows


class LabelDraws:
    """Draws goals and states to learn from.

    Args:
        known: Goals that are learned, met or not.
        learned: Those of them that some state to learn from meets.
        part_of: Part of each state, shape (S,).
        in_turn: Whether the learned goals come one after the other, rather than by luck.
    """

    def __init__(
        self,
        known: list[LabelledGoal],
        learned: list[LabelledGoal],
        part_of: NDArray[np.int8],
        in_turn: bool,
    ) -> None:
        """Sort the goals by task."""
        self._known, self._learned, self._in_turn = known, learned, in_turn
        self._is_learned_from = part_of == Part.training.value
        tasks: dict[str, list[LabelledGoal]] = {}
        for goal in learned:
            tasks.setdefault(goal.goal.task, []).append(goal)
        self._by_task = dict(sorted(tasks.items()))

    def draw_goal(self, rng: np.random.Generator, slot: int) -> LabelledGoal:
        """Half of them by task, so that none is rare, and half from all; or the one whose turn it is."""
        if self._in_turn:
            return self._learned[slot % len(self._learned)]
        if slot % 2:
            return self._known[rng.integers(len(self._known))]
        tasks = list(self._by_task.values())
        task = tasks[rng.integers(len(tasks))]
        return task[rng.integers(len(task))]

    def draw_states(self, rng: np.random.Generator, goal: LabelledGoal, number: int) -> tuple[Rows, NDArray[np.bool_]]:
        """States of a goal, shape (N,), and whether they meet it."""
        met, hard, easy = self._pools[goal.number]
        num_met = number // 2 if len(met) else 0
        num_hard = (number - num_met) // 2 if len(hard) else 0
        if not len(easy):
            easy = met
        sizes = (num_met, num_hard, number - num_met - num_hard)
        drawn = [
            pool[rng.integers(len(pool), size=size)]
            for pool, size in zip((met, hard, easy), sizes, strict=True)
            if size
        ]
        states = np.concatenate(drawn)
        return states, np.isin(states, met)

    @cached_property
    def _pools(self) -> dict[int, tuple[Rows, Rows, Rows]]:
        """Of each goal, the states to learn from that meet it, that meet only others of its task, and that do not.

        Where only what is met was kept, the last are all states: hardly any of them meet it.
        """
        every = np.flatnonzero(self._is_learned_from)
        met_by_task = {
            task: np.unique(np.concatenate([self._own(goal.met) for goal in goals]))
            for task, goals in self._by_task.items()
        }
        found = {}
        for goal in self._known:
            others = met_by_task.get(goal.goal.task, np.zeros(0, dtype=np.int64))
            if goal.unmet is None:
                hard, easy = np.setdiff1d(others, goal.met), every
            else:
                hard, easy = np.intersect1d(others, goal.unmet), self._own(goal.unmet)
            found[goal.number] = self._own(goal.met), hard, easy
        return found

    def _own(self, states: Rows) -> Rows:
        return states[self._is_learned_from[states]]
