"""The local model against the true simulator, which it never sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kalm.envs.babyai.layout import NUM_ACTIONS
from kalm.envs.babyai.simulator import next_states
from kalm.rl.planning.empirical_graph import RecordedParts
from kalm.rl.planning.local_dynamics import _take_in, learn_local_dynamics
from tests.rl.planning.room import Room, walks

LOCALITY = Room.locality


def test_what_differed_is_not_predicted() -> None:
    """Two effects of one action in one situation: the entry is not known, whatever comes after."""
    known = np.full((2, 1), -2)
    _take_in(known, np.array([0, 0, 1]), np.array([0, 0, 0]), np.array([5, 6, 7]))
    _take_in(known, np.array([0, 1]), np.array([0, 0]), np.array([5, 7]))
    assert known.tolist() == [[-1], [7]]


def test_an_action_that_was_only_seen_to_do_nothing_is_known_to(tmp_path: Path) -> None:
    """The table of what changes something, by what is in front and in the hand, agrees with the simulator."""
    recorded = RecordedParts(walks(tmp_path / "store", num_rollouts=40, num_steps=200))
    dynamics = learn_local_dynamics(LOCALITY, recorded, NUM_ACTIONS)
    states = recorded[0].observe(np.arange(recorded[0].graph.num_states))
    situation = LOCALITY.situation(states)
    for action in range(NUM_ACTIONS):
        does = (next_states(states, np.full(len(states), action)) != states).any(axis=(1, 2, 3))
        said = dynamics.changes[situation, action]
        known = dynamics.effect[situation, action] >= 0
        assert np.array_equal(said[known], does[known])
        assert not said[~known].any()


def test_what_effects_make_is_what_the_simulator_makes(tmp_path: Path) -> None:
    """Applied to single states, and told by name for all poses of a configuration at once."""
    recorded = RecordedParts(walks(tmp_path / "store", num_rollouts=10, num_steps=100))
    dynamics = learn_local_dynamics(LOCALITY, recorded, NUM_ACTIONS)
    states = recorded[0].observe(np.arange(recorded[0].graph.num_states))
    configurations, poses = LOCALITY.split(states)
    names, rows = LOCALITY.names(configurations), np.arange(len(states))
    for action in range(NUM_ACTIONS):
        effects = dynamics.effect[LOCALITY.situation(states), action]
        known = np.flatnonzero(effects >= 0)
        after, pose_after = LOCALITY.after(configurations[known], poses[known], effects[known])
        truth = next_states(states[known], np.full(len(known), action))
        assert np.array_equal(LOCALITY.join(after, pose_after), truth)
        everywhere = np.broadcast_to(effects[:, None], LOCALITY.situations(configurations).shape)
        name, pose = (array[rows, poses][known] for array in LOCALITY.outcomes(configurations, names, everywhere))
        assert np.array_equal(name, LOCALITY.names(after))
        assert np.array_equal(pose, pose_after)
