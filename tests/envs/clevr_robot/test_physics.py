"""The simulator reproduces the original's recorded rollouts, in any batch, on any number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kalm.envs.clevr_robot.layout import MIN_RESET_DISTANCE, NUM_ACTIONS, sample_layout
from kalm.envs.clevr_robot.vector_env import ClevrRobotPhysics

REFERENCE = Path(__file__).parents[1] / "reference" / "clevr_robot.npz"


@pytest.fixture(scope="module")
def recorded() -> tuple[np.ndarray, np.ndarray]:
    """Observations (40, 21, 10) and actions (40, 20) of the original physics."""
    with np.load(REFERENCE) as reference:
        return reference["rollout_observation"], reference["rollout_action"]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_recorded_rollouts_are_reproduced(recorded: tuple[np.ndarray, np.ndarray], num_threads: int) -> None:
    """Every coordinate of all 40 rollouts of 20 pushes agrees to 1e-9."""
    observations, actions = recorded
    assert observations.shape == (40, 21, 10)
    physics = ClevrRobotPhysics(num_threads)
    state = physics.initial_state(observations[:, 0])
    np.testing.assert_array_equal(physics.observation(state), observations[:, 0])
    for step in range(20):
        state = physics.step(state, actions[:, step])
        np.testing.assert_allclose(physics.observation(state), observations[:, step + 1], rtol=0, atol=1e-9)


def test_a_state_steps_alike_alone_and_in_any_batch(recorded: tuple[np.ndarray, np.ndarray]) -> None:
    """Results are equal to the last bit whatever else is stepped, and however many threads there are."""
    observations, actions = recorded
    many, one = ClevrRobotPhysics(2), ClevrRobotPhysics(1)
    state = many.initial_state(observations[:, 0])
    for step in range(3):
        after = many.step(state, actions[:, step])
        for row in (0, 17, 39):
            np.testing.assert_array_equal(one.step(state[[row]], actions[[row], step])[0], after[row])
        shuffled = np.random.default_rng(step).permutation(40)
        np.testing.assert_array_equal(many.step(state[shuffled], actions[shuffled, step]), after[shuffled])
        state = after


def test_stepping_leaves_the_given_state_alone(recorded: tuple[np.ndarray, np.ndarray]) -> None:
    """``step`` returns new states, so that a caller may try several actions from one."""
    physics = ClevrRobotPhysics(1)
    state = physics.initial_state(recorded[0][:2, 0])
    kept = state.copy()
    first = physics.step(state, np.array([0, 1]))
    np.testing.assert_array_equal(state, kept)
    np.testing.assert_array_equal(physics.step(state, np.array([0, 1])), first)


@pytest.mark.parametrize(("action", "sign"), [(0, (1, 0)), (9, (0, 1)), (18, (-1, 0)), (27, (0, -1)), (36, (1, 1))])
def test_a_free_push_moves_its_ball_its_way(action: int, sign: tuple[int, int]) -> None:
    """With all balls apart the pushed one moves in the push's direction, and no other moves."""
    ball = action // 8
    corners = [(-0.45, 0.55), (0.45, 0.55), (-0.45, -0.15), (0.45, -0.15)]
    layout = np.array([*corners[:ball], (0.0, 0.2), *corners[ball:]]).ravel()
    physics = ClevrRobotPhysics(1)
    after = physics.observation(physics.step(physics.initial_state(layout[None]), np.array([action])))[0]
    moved = (after - layout).reshape(5, 2)
    assert np.all(moved[ball] * sign >= 0.15 * np.abs(sign))
    assert np.abs(moved[ball][np.array(sign) == 0]).max(initial=0.0) < 0.001
    assert np.abs(np.delete(moved, ball, axis=0)).max() < 1e-6


def test_layouts_keep_balls_apart() -> None:
    """Balls of a reset are on the table, 0.36 apart, and never nearly but not exactly aligned."""
    for seed in range(50):
        centers = sample_layout(np.random.default_rng(seed)).reshape(5, 2)
        assert (np.abs(centers[:, 0]) <= 0.5).all()
        assert ((centers[:, 1] >= -0.3) & (centers[:, 1] <= 0.5)).all()
        first, second = np.triu_indices(5, 1)
        offset = np.abs(centers[first] - centers[second])
        assert np.linalg.norm(offset, axis=1).min() >= MIN_RESET_DISTANCE
        assert ((offset == 0) | (offset >= 0.01)).all()


def test_number_of_threads_is_checked() -> None:
    """Zero threads are refused."""
    with pytest.raises(ValueError, match="num_threads is 0"):
        ClevrRobotPhysics(0)


def test_there_are_forty_actions() -> None:
    """Five balls times eight pushes."""
    assert NUM_ACTIONS == 40
