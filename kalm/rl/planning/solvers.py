"""Three ways to solve a goal on a known graph, with the same answers; TEDUO's own is tabular Q-learning.

A goal is a set of states. Entering one is worth 1 and ends the episode, everything else is worth 0, and a step later
counts ``discount`` times as much. So the best action in a deterministic graph is one on a shortest path, whatever the
discount, and there may be several: all of them are said.

- ``ShortestPath``: breadth-first search backwards from the goal. Goes by the most frequent successors; exact however
  far the goal is; about a hundred times as fast as Q-learning.
- ``ValueIteration``: Q(s, a) = sum_s' P(s' | s, a) [r(s') + discount * max_a' Q(s', a')] until nothing changes.
- ``TabularQLearning``: Q <- (1 - learning_rate) Q + learning_rate [r + discount * max_a' Q(s', a')] over all recorded
  (s, a) at once, until no entry changes by ``tolerance`` (section 3.2 and appendix C.6). A sweep carries value one step
  further, so what is farther away than there are sweeps stays unsolved.

Successors are those in the graph alone, and nothing is said of actions that were never taken.

Shape letters: S states, A actions.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numba
import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import require
from kalm.core.names import Source
from kalm.rl.planning.empirical_graph import UNKNOWN, Graph, Part
from kalm.rl.planning.following import choose_starts, follow_all
from kalm.rl.planning.planner import Planner, PlanSettings, Ways

_SAME = 1e-9  # values of actions that differ by less, relatively, are equal but for rounding
_NOT_USED = -2
_UNKNOWN = UNKNOWN  # numba takes globals of this file only


@dataclass(frozen=True, eq=False)
class Solution:
    """What to do in every state.

    Attributes:
        value: Discounted reward still to come, float, shape (S,): discount ** (steps to the goal - 1) where the graph
            is deterministic; 1 in states of the goal and 0 where the goal cannot be reached.
        optimal: All best actions, bool, shape (S, A); none where the goal is met or cannot be reached.
    """

    value: NDArray[np.floating[Any]]
    optimal: NDArray[np.bool_]

    @property
    def has_best(self) -> NDArray[np.bool_]:
        """In which states there is something to do that leads to the goal, shape (S,)."""
        return _any(self.optimal)


class Solver(Planner):
    """Solves one goal on one graph; its plans follow the solution from several starts."""

    source: ClassVar[Source] = Source.IMAGINARY

    def plan(self, part: Part, is_goal: NDArray[np.bool_], settings: PlanSettings, rng: np.random.Generator) -> Ways:
        """Act by best actions, from a share of starts where recorded rollouts begin and others anywhere."""
        graph, used = part.graph, part.used_for(is_goal)
        solution = self.solve(graph, is_goal, used)
        if used is not None and not (solution.has_best | is_goal)[part.is_start].all():
            solution = self.solve(graph, is_goal)  # what matters for the goal does not lead there from every start
        can_start, optimal = solution.has_best, solution.optimal
        starts = choose_starts(can_start, part.is_start, settings.num_plans, settings.start_share, rng)
        states, actions = follow_all(graph, optimal, is_goal, starts, settings.max_length, int(rng.integers(2**63)))
        return Ways(can_start, states, actions, [optimal[path[:-1]] for path in states])

    @abstractmethod
    def solve(self, graph: Graph, is_goal: NDArray[np.bool_], is_used: NDArray[np.bool_] | None = None) -> Solution:
        """Find the best actions.

        Args:
            graph: What is known.
            is_goal: Which states meet the goal, shape (S,).
            is_used: States that a solution may go through, shape (S,); all of them by default. Nothing is said of the
                others.
        """


class ShortestPath(Solver):
    """Breadth-first search backwards from all states of the goal at once."""

    def __init__(self, discount: float = 0.7) -> None:
        """Settle what a step costs; it decides values only.

        Args:
            discount: Worth of a reward one step later, in (0, 1) (paper: 0.7).
        """
        require(0 < discount < 1, "discount", discount, "in (0, 1)")
        self.discount = discount

    def solve(self, graph: Graph, is_goal: NDArray[np.bool_], is_used: NDArray[np.bool_] | None = None) -> Solution:
        """Actions that lead one step nearer."""
        steps = distances(graph, is_goal, is_used)
        optimal = _nearer(graph.successor, steps)
        worth = self.discount ** np.maximum(np.arange(steps.max(initial=0) + 2) - 1.0, 0.0)
        worth[-1] = 0.0  # of a state that is ``UNKNOWN`` steps away
        return Solution(worth[steps], optimal)


class ValueIteration(Solver):
    """Expected values, swept over all states until they stand still."""

    def __init__(self, discount: float = 0.7, max_sweeps: int = 100_000) -> None:
        """Settle what a step costs.

        Args:
            discount: Worth of a reward one step later, in (0, 1) (paper: 0.7).
            max_sweeps: After which it stops in any case.
        """
        require(0 < discount < 1, "discount", discount, "in (0, 1)")
        require(max_sweeps >= 1, "max_sweeps", max_sweeps, "1 or more")
        self.discount, self.max_sweeps = discount, max_sweeps

    def solve(self, graph: Graph, is_goal: NDArray[np.bool_], is_used: NDArray[np.bool_] | None = None) -> Solution:
        """Actions of the greatest expected value."""
        # A learning rate of 1 puts the target in place of the value; far values are tiny, so change is relative.
        q = np.zeros(graph.successor.shape)
        pairs = _taken(graph, is_used)
        _sweep(q, *graph.edges, pairs, is_goal, 1.0, self.discount, 0.0, _SAME, self.max_sweeps)
        return _greedy(q, is_goal)


class TabularQLearning(Solver):
    """The paper's solver, all recorded actions updated at once."""

    def __init__(
        self,
        learning_rate: float = 0.1,
        discount: float = 0.7,
        tolerance: float = 1e-6,
        max_sweeps: int = 100_000,
        dtype: Literal["float64", "float32"] = "float64",
    ) -> None:
        """Settle the constants.

        Args:
            learning_rate: Share of the target in each new value (paper: 0.1).
            discount: Worth of a reward one step later, in (0, 1) (paper: 0.7).
            tolerance: It ends when no value changes by as much (paper: 1e-6).
            max_sweeps: After which it stops in any case.
            dtype: Kind of number. With the paper's constants learning ends after 292 sweeps, when the value of a state
                k steps from the goal is tiny: 32 bits hold it up to 102 steps and lose goals that are farther away.
        """
        require(0 < learning_rate <= 1, "learning_rate", learning_rate, "in (0, 1]")
        require(0 < discount < 1, "discount", discount, "in (0, 1)")
        require(tolerance > 0, "tolerance", tolerance, "greater than 0")
        require(max_sweeps >= 1, "max_sweeps", max_sweeps, "1 or more")
        self.learning_rate, self.discount, self.tolerance = learning_rate, discount, tolerance
        self.max_sweeps, self.dtype = max_sweeps, np.dtype(dtype)

    def solve(self, graph: Graph, is_goal: NDArray[np.bool_], is_used: NDArray[np.bool_] | None = None) -> Solution:
        """Actions of the greatest learned value."""
        q = np.zeros(graph.successor.shape, dtype=self.dtype)
        pairs, rate = _taken(graph, is_used), self.learning_rate
        _sweep(q, *graph.edges, pairs, is_goal, rate, self.discount, self.tolerance, 0.0, self.max_sweeps)
        return _greedy(q, is_goal)


def distances(graph: Graph, is_goal: NDArray[np.bool_], is_used: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
    """Fewest steps from each state to the goal by the most frequent successors, (S,); ``UNKNOWN`` if there are none."""
    return _search(*graph.predecessors, is_goal, np.ones_like(is_goal) if is_used is None else is_used)


def _taken(graph: Graph, is_used: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Pairs of a state that is used and an action that was taken there, as ``state * A + action``."""
    pairs = np.flatnonzero(np.diff(graph.edges.start) > 0)
    return pairs if is_used is None else pairs[is_used[pairs // graph.num_actions]]


@numba.njit(cache=True, nogil=True)
def _search(
    start: NDArray[np.int64],
    predecessor: NDArray[np.int32],
    is_goal: NDArray[np.bool_],
    is_used: NDArray[np.bool_],
) -> NDArray[np.int32]:
    num_states = len(is_goal)
    steps = np.full(num_states, _UNKNOWN, dtype=np.int32)
    queue = np.empty(num_states, dtype=np.int32)
    end = 0
    for state in range(num_states):
        if not is_used[state]:
            steps[state] = _NOT_USED
        elif is_goal[state]:
            steps[state] = 0
            queue[end] = state
            end += 1
    first = 0
    while first < end:
        state = queue[first]
        first += 1
        for edge in range(start[state], start[state + 1]):
            before = predecessor[edge]
            if steps[before] == _UNKNOWN:
                steps[before] = steps[state] + 1
                queue[end] = before
                end += 1
    for state in range(num_states):
        if steps[state] == _NOT_USED:
            steps[state] = _UNKNOWN
    return steps


@numba.njit(cache=True, nogil=True)
def _any(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows in which something is marked; numpy takes ten times as long for rows that short."""
    found = np.zeros(len(marked), dtype=np.bool_)
    for row in range(len(marked)):
        for column in range(marked.shape[1]):
            if marked[row, column]:
                found[row] = True
                break
    return found


@numba.njit(cache=True, nogil=True)
def _nearer(successor: NDArray[np.int32], steps: NDArray[np.int32]) -> NDArray[np.bool_]:
    optimal = np.zeros(successor.shape, dtype=np.bool_)
    for state in range(len(steps)):
        if steps[state] > 0:
            for action in range(successor.shape[1]):
                target = successor[state, action]
                optimal[state, action] = target != _UNKNOWN and steps[target] == steps[state] - 1
    return optimal


@numba.njit(cache=True, nogil=True)
def _sweep(
    q: NDArray[Any],
    start: NDArray[np.int64],
    next_state: NDArray[np.int32],
    probability: NDArray[np.float64],
    pairs: NDArray[np.int64],
    is_goal: NDArray[np.bool_],
    learning_rate: float,
    discount: float,
    tolerance: float,
    relative_tolerance: float,
    max_sweeps: int,
) -> None:
    """Update ``q``, (S, A), in place, until no entry changes by more than the greater of the tolerances."""
    num_states, num_actions = q.shape
    worth = np.empty(num_states, dtype=q.dtype)  # of being in a state, with the values before the sweep
    for _ in range(max_sweeps):
        worth[:] = 0.0
        for pair in pairs:
            state, action = pair // num_actions, pair % num_actions
            worth[state] = max(worth[state], discount * q[state, action])
        for state in range(num_states):
            if is_goal[state]:
                worth[state] = 1.0
        goes_on = False
        for pair in pairs:
            state, action = pair // num_actions, pair % num_actions
            if is_goal[state]:
                continue  # the episode is over
            target = 0.0
            for edge in range(start[pair], start[pair + 1]):
                target += probability[edge] * worth[next_state[edge]]
            old = q[state, action]
            q[state, action] = (1.0 - learning_rate) * old + learning_rate * target
            change = abs(q[state, action] - old)
            if change > 0.0 and change >= tolerance and change >= relative_tolerance * target:
                goes_on = True
        if not goes_on:
            break


def _greedy(q: NDArray[Any], is_goal: NDArray[np.bool_]) -> Solution:
    best = q.max(axis=1)
    optimal = (q >= best[:, None] * (1 - _SAME)) & (best > 0)[:, None]
    return Solution(np.where(is_goal, 1.0, best), optimal)
