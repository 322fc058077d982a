"""Completed graphs against the true simulator, which they never see: what is predicted is right, and much is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kalm.envs.babyai.layout import NUM_ACTIONS, code_of
from kalm.envs.babyai.simulator import next_states
from kalm.rl.planning.completed_part import CompletedPart
from kalm.rl.planning.completion import complete
from kalm.rl.planning.empirical_graph import UNKNOWN, Part, RecordedParts
from kalm.rl.planning.local_dynamics import learn_local_dynamics
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
        every = np.arange(more.num_states)
        states = more.observe(every)
        assert len(np.unique(states.reshape(len(states), -1), axis=0)) == len(states)
        number_of = {state.tobytes(): number for number, state in enumerate(states)}
        num_right = num_possible = 0
        for action in range(NUM_ACTIONS):
            truth = next_states(states, np.full(len(states), action))
            expected = np.array([number_of.get(state.tobytes(), UNKNOWN) for state in truth])
            predicted = more.graph.successor[: len(states), action].astype(np.int64)
            known = np.flatnonzero(predicted != UNKNOWN)
            seen = more.observe_next(known, np.full(len(known), action), predicted[known])
            assert np.array_equal(seen, truth[known])
            is_leaf = predicted >= len(states)
            assert (expected[is_leaf] == UNKNOWN).all()  # what is in the graph is no leaf
            predicted[is_leaf] = UNKNOWN
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


def test_states_come_apart_and_together_again(tmp_path: Path) -> None:
    """Also: what a judge is asked about stands for all states that it cannot tell apart."""
    _, completed = parts_of(tmp_path / "store", num_rollouts=10, num_steps=60)
    for part in completed:
        states = part.observe(np.arange(part.num_states))
        configurations, poses = LOCALITY.split(states)
        assert np.array_equal(LOCALITY.join(configurations, poses), states)
        assert np.array_equal(LOCALITY.situation(states), part.situation)
        for goal, _ in GOALS:
            first, of_state, _ = part.representatives(LOCALITY.aspect(goal))
            assert len(first) < len(states)
            assert np.array_equal(goal.success(states[first])[of_state], goal.success(states))


def test_where_an_agent_may_set_out_is_known_by_the_data(tmp_path: Path) -> None:
    """Every walk begins with all things in their places; any pose will do, and nothing else."""
    recorded, completed = parts_of(tmp_path / "store", num_rollouts=10, num_steps=60)
    for part, more in zip(recorded, completed, strict=True):
        begin = more.observe(np.flatnonzero(more.is_start))
        assert (begin[..., 0] == begin[0, ..., 0]).all()
        assert more.is_start[: part.graph.num_states][part.is_start].all()
        assert more.is_start.sum() > part.is_start.sum()


def test_few_configurations_are_enough_to_go_on(tmp_path: Path) -> None:
    """With a limit of none only recorded configurations have poses, the rest are leaves; with a higher one more do."""
    recorded = RecordedParts(walks(tmp_path / "store", num_rollouts=10, num_steps=60))
    dynamics = learn_local_dynamics(LOCALITY, recorded, NUM_ACTIONS)
    for part in recorded:
        none, one, all_of_them = (complete(part, LOCALITY, dynamics, most) for most in (0, 1, 3000))
        num_recorded = len(np.unique(LOCALITY.names(LOCALITY.split(part.observe(np.arange(len(part.states))))[0])))
        assert [len(more.configurations) for more in (none, one)] == [num_recorded, num_recorded + 1]
        assert len(all_of_them.configurations) > num_recorded + 1
        assert none.leaves.num_kinds > 0
        assert none.num_states < one.num_states < all_of_them.num_states


def test_what_is_carried_is_let_go_of_only_at_the_end(tmp_path: Path) -> None:
    """Predicted configurations differ from where walks begin by open doors and one thing in the hand."""
    _, completed = parts_of(tmp_path / "store", num_rollouts=20, num_steps=100)
    for more in completed:
        begin = more.configurations[more.configuration[np.flatnonzero(more.is_start)[:1]]]
        recorded = more.configuration[more.states[: more.num_states] != UNKNOWN].max() + 1
        predicted = more.configurations[recorded:]
        is_taken = predicted[:, :-1] == 0
        differs = (predicted[:, :-1] != begin[:, :-1]) & is_taken
        assert np.array_equal(differs.sum(axis=1), (predicted[:, -1] != 0).astype(np.int64))


def test_a_leaf_is_a_goal_wherever_its_kind_is_reached(tmp_path: Path) -> None:
    """One interaction of each kind is asked about; the answer holds for all others from where the goal is unmet."""
    num_met = 0
    _, completed = parts_of(tmp_path / "store", num_rollouts=12, num_steps=60)
    for more in completed:
        states = more.observe(np.arange(more.num_states))
        state, action = np.nonzero(more.graph.successor[: more.num_states] >= more.num_states)
        node = more.graph.successor[state, action].astype(np.int64)
        made = more.observe_next(state, action, node)
        for goal, _ in GOALS:
            is_goal = goal.success(states)
            chosen = more.leaves.chosen(np.append(is_goal, np.zeros(more.leaves.num_kinds, np.bool_)))
            kinds = np.flatnonzero(chosen != UNKNOWN)
            said = np.zeros(more.leaves.num_kinds, dtype=np.bool_)
            said[kinds] = goal.success(more.made_by(*(array[chosen[kinds]] for array in more.leaves[1:3])))
            unmet = ~is_goal[state]
            assert np.array_equal(said[node - more.num_states][unmet], goal.success(made)[unmet])
            num_met += int(said.sum())
    assert num_met > 0


def test_a_goal_is_solved_without_what_does_not_matter_for_it(tmp_path: Path) -> None:
    """To take up the ball no key is carried but where that was recorded; elsewhere nothing is farther away for it."""
    _, completed = parts_of(tmp_path / "store", num_rollouts=12, num_steps=60)
    for more in completed:
        states = more.observe(np.arange(more.num_states))
        is_goal = np.append(GOALS[0][0].success(states), np.zeros(more.leaves.num_kinds, np.bool_))
        is_used = more.used_for(is_goal)
        carried = LOCALITY.carried(more.configurations)[more.configuration]
        key = carried == code_of("key", "blue")
        recorded = np.isin(more.configuration, more.configuration[: more.num_recorded])
        assert np.array_equal(is_used[: more.num_states], ~key | recorded)
        steps = distances(more.graph, is_goal, is_used)
        assert (steps[~is_used] == UNKNOWN).all()
        assert np.array_equal(steps[more.is_start], distances(more.graph, is_goal)[more.is_start])
