"""Three solvers of a goal on a known graph: worked by hand where that is short, and equal to each other elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from kalm.core.errors import KalmError
from kalm.rl.planning.empirical_graph import UNKNOWN, Graph, graph_of
from kalm.rl.planning.solvers import ShortestPath, Solver, TabularQLearning, ValueIteration, distances

SOLVERS = (ShortestPath(), ValueIteration(), TabularQLearning())


def graph(*steps: tuple[int, int, int], num_states: int, num_actions: int = 2) -> Graph:
    """A graph of recorded (state, action, next state)."""
    state, action, next_state = np.array(steps, dtype=np.int64).T
    return graph_of(state, action, next_state, num_states, num_actions)


def chain(length: int) -> Graph:
    """Action 0 leads from state k to k + 1, action 1 back to k - 1."""
    forth = [(state, 0, state + 1) for state in range(length - 1)]
    back = [(state, 1, state - 1) for state in range(1, length)]
    return graph(*forth, *back, num_states=length)


def only(state: int, num_states: int) -> NDArray[np.bool_]:
    """A goal that is met in one state."""
    return np.arange(num_states) == state


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)
def test_two_ways_to_the_goal_are_both_best(solver: Solver) -> None:
    """A diamond: from 0 over 1 or over 2 to 3; from 4 nothing is known.

    One step before the goal the value is 1, two steps before it 0.7. In state 1 action 1 leads back to 0 and is worse.
    """
    diamond = graph((0, 0, 1), (0, 1, 2), (1, 0, 3), (1, 1, 0), (2, 1, 3), (3, 0, 4), num_states=5)
    solution = solver.solve(diamond, only(3, 5))
    assert solution.optimal.tolist() == [[True, True], [True, False], [False, True], [False, False], [False, False]]
    assert solution.value == pytest.approx([0.7, 1, 1, 1, 0], abs=2e-5)  # Q-learning stops 1e-6 / 0.1 short of it


def test_one_sweep_of_q_learning_by_hand() -> None:
    """From 0 over 1 to 2: after sweep 1 Q(1) = 0.1; after sweep 2 Q(1) = 0.19 and Q(0) = 0.1 * 0.7 * 0.1 = 0.007."""
    row = graph((0, 0, 1), (1, 0, 2), num_states=3)
    assert TabularQLearning(max_sweeps=1).solve(row, only(2, 3)).value == pytest.approx([0, 0.1, 1])
    assert TabularQLearning(max_sweeps=2).solve(row, only(2, 3)).value == pytest.approx([0.007, 0.19, 1])


def test_values_are_expectations_and_paths_go_by_the_most_frequent_successor() -> None:
    """Action 0 leads from 0 to the goal once in four times and else nowhere; action 1 by way of 1 for certain.

    Nowhere is state 3, from which nothing leads on. So Q(0, 0) = 0.25, Q(0, 1) = 0.7, and the successor by action 0
    is 3.
    """
    recorded = graph((0, 0, 2), (0, 0, 3), (0, 0, 3), (0, 0, 3), (0, 1, 1), (1, 0, 2), num_states=4)
    assert recorded.successor[0].tolist() == [3, 1]
    assert recorded.edges.probability[:2].tolist() == [0.25, 0.75]
    for solver in SOLVERS:
        solution = solver.solve(recorded, only(2, 4))
        assert solution.value[0] == pytest.approx(0.7, abs=2e-5)
        assert solution.optimal[0].tolist() == [False, True]
    closer = ValueIteration(discount=0.2).solve(recorded, only(2, 4))
    assert closer.value[0] == pytest.approx(0.25)
    assert closer.optimal[0].tolist() == [True, False]


def test_of_equally_frequent_successors_the_first_counts() -> None:
    """States 2 and 1 follow once each: 1 is taken, whatever the order in which they were recorded."""
    assert graph((0, 0, 2), (0, 0, 1), num_states=3).successor[0, 0] == 1
    assert graph((0, 0, 1), (0, 0, 2), num_states=3).successor[0, 0] == 1


@pytest.mark.parametrize("seed", range(20))
def test_all_solvers_agree_on_random_graphs(seed: int) -> None:
    """The same best actions, and values that are discount ** (steps - 1), in graphs with dead ends and loops."""
    rng = np.random.default_rng(seed)
    num_states, num_actions = 60, 3
    successor = rng.integers(num_states, size=(num_states, num_actions)).astype(np.int32)
    successor[rng.random(successor.shape) < 0.4] = UNKNOWN
    random, is_goal = Graph(successor), rng.random(num_states) < 0.05
    shortest, iterated, learned = (solver.solve(random, is_goal) for solver in SOLVERS)
    assert np.array_equal(shortest.optimal, iterated.optimal)
    assert np.array_equal(shortest.optimal, learned.optimal)
    assert shortest.value == pytest.approx(iterated.value, rel=1e-9)
    steps = distances(random, is_goal)
    assert not shortest.optimal[(steps == UNKNOWN) | is_goal].any()
    assert shortest.optimal[steps > 0].any(axis=1).all()
    assert shortest.value[steps > 0] == pytest.approx(0.7 ** (steps[steps > 0] - 1.0))


def test_a_solution_goes_only_through_states_that_are_used() -> None:
    """A long way round where the short one is closed; all solvers agree, and say nothing of what is not used."""
    both = graph((0, 0, 1), (1, 0, 4), (0, 1, 2), (2, 0, 3), (3, 0, 4), num_states=5)
    is_used = np.array([True, False, True, True, True])
    for solver in SOLVERS:
        assert solver.solve(both, only(4, 5)).optimal[0].tolist() == [True, False]
        solution = solver.solve(both, only(4, 5), is_used)
        assert np.argwhere(solution.optimal).tolist() == [[0, 1], [2, 0], [3, 0]]
        assert solution.has_best.tolist() == [True, False, True, True, False]


def test_a_goal_far_away_is_lost_in_32_bits() -> None:
    """A corridor of 199 steps: in 32 bits what is more than 102 steps away has the value 0 when learning ends.

    Its true value there, 0.7 ** 102 = 1.6e-16, is no difficulty, but after 292 sweeps hardly any of it has arrived. In
    64 bits, and by the other solvers, nothing is lost.
    """
    corridor, is_goal = chain(200), only(199, 200)
    for solver in SOLVERS:
        assert solver.solve(corridor, is_goal).optimal[:199].tolist() == [[True, False]] * 199
    in_32_bits = TabularQLearning(dtype="float32").solve(corridor, is_goal)
    assert in_32_bits.optimal[199 - 102 : 199, 0].all()
    assert not in_32_bits.optimal[: 199 - 102].any()
    assert not in_32_bits.value[: 199 - 102].any()


def test_q_learning_solves_as_many_steps_as_it_sweeps() -> None:
    """With the paper's constants that is 292, about the length of an episode's limit of 500 and less."""
    solution = TabularQLearning().solve(chain(400), only(399, 400))
    assert solution.optimal.any(axis=1).sum() == 292


def test_shortest_paths_are_exact_however_long() -> None:
    """Q-learning's value has stopped before it gets there; a search goes on. Both ends of 3,000 states."""
    corridor = chain(3000)
    assert distances(corridor, only(2999, 3000))[0] == 2999
    assert ShortestPath().solve(corridor, only(2999, 3000)).optimal[0].tolist() == [True, False]


def test_which_actions_changed_something_is_known() -> None:
    """An action that led nowhere else, or was never taken, did not."""
    assert graph((0, 0, 0), (0, 1, 1), num_states=2).changes.tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("discount", [0.0, 1.0])
@pytest.mark.parametrize("solver", [ShortestPath, ValueIteration, TabularQLearning])
def test_a_discount_out_of_range_is_refused(solver: type[Solver], discount: float) -> None:
    """Nothing would tell near from far."""
    with pytest.raises(KalmError, match="discount is"):
        solver(discount=discount)  # type: ignore[call-arg]
