"""The local model against the true simulator, which it never sees: what it predicts is right, and much is predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kalm.envs.babyai.layout import NUM_ACTIONS
from kalm.envs.babyai.simulator import next_states
from kalm.rl.planning.empirical_graph import UNKNOWN, Part, RecordedParts
from kalm.rl.planning.local_dynamics import CompletedPart, complete, learn_local_dynamics
from kalm.rl.planning.solvers import distances
from tests.rl.planning.room import GOALS, Room, walks

LOCALITY = Room.locality


def parts_of(path: Path, **options: int) -> tuple[list[Part], list[CompletedPart]]:
    """Recorded and completed parts of a store of random walks."""
    recorded = list(RecordedParts(walks(path, **options)))
    dynamics = learn_local_dynamics(LOCALITY, recorded, NUM_ACTIONS)
    return recorded, [complete(part, LOCALITY, dynamics) for part in recorded]


def test_predictions_are_all_right_and_most_that_could_be_known_are_made(tmp_path: Path) -> None:
    """Precision 1: every edge of the completed graph is what the simulator does. Recall over all states in it."""
    recorded, completed = parts_of(tmp_path / "store", num_rollouts=40, num_steps=200)
    for part, more in zip(recorded, completed, strict=True):
        every = np.arange(more.graph.num_states)
        states = more.observe(every)
        assert len(np.unique(states.reshape(len(states), -1), axis=0)) == len(states)
        number_of = {state.tobytes(): number for number, state in enumerate(states)}
        num_right = num_possible = 0
        for action in range(NUM_ACTIONS):
            truth = next_states(states, np.full(len(states), action))
            expected = np.array([number_of.get(state.tobytes(), UNKNOWN) for state in truth])
            predicted = more.graph.successor[:, action]
            assert np.array_equal(predicted[predicted != UNKNOWN], expected[predicted != UNKNOWN])
            num_right += int((predicted != UNKNOWN).sum())
            num_possible += int((expected != UNKNOWN).sum())
        assert num_right / num_possible > 0.95
        assert more.graph.num_states > 1.5 * part.graph.num_states


def test_what_was_recorded_comes_first_and_stays(tmp_path: Path) -> None:
    """A completed part begins with the states of the part, and has all its edges."""
    recorded, completed = parts_of(tmp_path / "store", num_rollouts=6, num_steps=40)
    for part, more in zip(recorded, completed, strict=True):
        size = part.graph.num_states
        assert np.array_equal(more.states[:size], part.states)
        assert (more.states[size:] == UNKNOWN).all()
        assert np.array_equal(more.observe(np.arange(size)), part.observe(np.arange(size)))
        known = part.graph.successor != UNKNOWN
        assert np.array_equal(more.graph.successor[:size][known], part.graph.successor[known])
        start, next_state, probability = more.graph.edges
        assert len(start) == more.graph.num_states * NUM_ACTIONS + 1
        assert np.array_equal(next_state, more.graph.successor[more.graph.successor != UNKNOWN])
        assert (probability == 1).all()


def test_more_can_be_solved_than_was_shown(tmp_path: Path) -> None:
    """From each recorded state at least as much is reached, and no farther away; for some goals from many more."""
    recorded, completed = parts_of(tmp_path / "store", num_rollouts=6, num_steps=60)
    gained = 0
    for part, more in zip(recorded, completed, strict=True):
        states = part.observe(np.arange(part.graph.num_states))
        for goal, _ in GOALS:
            is_goal = goal.success(states)
            before = distances(part.graph, is_goal)
            after = distances(more.graph, np.append(is_goal, np.zeros(more.graph.num_states - len(is_goal), np.bool_)))
            after = after[: len(before)]
            assert (after[before != UNKNOWN] != UNKNOWN).all()
            assert (after[before != UNKNOWN] <= before[before != UNKNOWN]).all()
            gained += int(((before == UNKNOWN) & (after != UNKNOWN)).sum())
    assert gained > 0


def test_what_differed_is_not_predicted() -> None:
    """Two effects of one action in one situation: the entry is not known, whatever comes after."""
    from kalm.rl.planning.local_dynamics import _take_in

    known = np.full((2, 1), -2)
    _take_in(known, np.array([0, 0, 1]), np.array([0, 0, 0]), np.array([5, 6, 7]))
    _take_in(known, np.array([0, 1]), np.array([0, 0]), np.array([5, 7]))
    assert known.tolist() == [[-1], [7]]


def test_an_action_that_was_only_seen_to_do_nothing_is_known_to(tmp_path: Path) -> None:
    """The table of what changes something, by what is in front and in the hand, agrees with the simulator."""
    recorded, _ = parts_of(tmp_path / "store", num_rollouts=40, num_steps=200)
    dynamics = learn_local_dynamics(LOCALITY, recorded, NUM_ACTIONS)
    states = recorded[0].observe(np.arange(recorded[0].graph.num_states))
    situation = LOCALITY.situation(states)
    for action in range(NUM_ACTIONS):
        does = (next_states(states, np.full(len(states), action)) != states).any(axis=(1, 2, 3))
        said = dynamics.changes[situation, action]
        known = dynamics.effect[situation, action] >= 0
        assert np.array_equal(said[known], does[known])
        assert not said[~known].any()


def test_states_come_apart_and_together_again(tmp_path: Path) -> None:
    """Also: what a judge is asked about stands for all states that it cannot tell apart."""
    _, completed = parts_of(tmp_path / "store", num_rollouts=10, num_steps=60)
    for part in completed:
        states = part.observe(np.arange(part.graph.num_states))
        configurations, poses = LOCALITY.split(states)
        assert np.array_equal(LOCALITY.join(configurations, poses), states)
        assert np.array_equal(LOCALITY.situation(states), part.situation)
        for goal, _ in GOALS:
            first, of_state = part.representatives(LOCALITY.aspect(goal))
            assert len(first) < len(states)
            assert np.array_equal(goal.success(states[first])[of_state], goal.success(states))
