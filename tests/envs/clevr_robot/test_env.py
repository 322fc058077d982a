"""Episodes of ``kalm/ClevrRobot-v0`` and of its vectorised twin: options, endings, errors, pictures."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from kalm.core.errors import DataError, SimulatorError
from kalm.envs.clevr_robot import ClevrRobot, MoveGoal, PlaceGoal
from kalm.envs.vector_env import SingleEnv

# Red is two free pushes to the right of its place at blue's right side.
START = np.array([0.45, 0.1, -0.2, 0.1, -0.4, 0.5, 0.1, 0.5, 0.4, 0.5])
PUSH_RED_LEFT = 2


@pytest.fixture
def env() -> SingleEnv:
    """A bare environment."""
    return gym.make("kalm/ClevrRobot-v0").unwrapped  # type: ignore[return-value]


def test_the_things_are_the_balls() -> None:
    """Five of two numbers each."""
    assert [(thing.start, thing.stop) for thing in ClevrRobot().things] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]


def test_success_terminates_and_never_truncates(env: SingleEnv) -> None:
    """The step that meets the goal is terminated and earns 100; before, ten times the distance gained to the place."""
    goal = PlaceGoal("red", "blue", "right")
    first, _ = env.reset(seed=0, options={"goal": goal, "observation": START})
    rewards, ended, seen = [], False, [first]
    while not ended:
        observation, reward, ended, truncated, info = env.step(np.int64(PUSH_RED_LEFT))
        rewards.append(reward)
        seen.append(observation)
        assert not truncated
        assert info["is_success"] == ended
    distances = [np.linalg.norm(at[0:2] - (at[2:4] + [0.195, 0.0])) for at in seen]
    assert rewards == pytest.approx([10 * (distances[0] - distances[1]), 100.0])


def test_failure_is_truncated_after_fifty_steps(env: SingleEnv) -> None:
    """Pushing an unconcerned ball into the corner for ever ends by time alone."""
    env.reset(seed=0, options={"goal": PlaceGoal("red", "blue", "left"), "observation": START})
    endings = [env.step(np.int64(4 * 8 + 4))[2:4] for _ in range(50)]
    assert endings == [(False, False)] * 49 + [(False, True)]


@pytest.mark.parametrize(("action", "ending"), [(PUSH_RED_LEFT, (True, False)), (0, (False, True))])
def test_a_move_ends_after_one_step(env: SingleEnv, action: int, ending: tuple[bool, bool]) -> None:
    """Right push: terminated. Wrong push: truncated at once."""
    env.reset(seed=0, options={"goal": MoveGoal("red", "left")})
    assert env.step(np.int64(action))[2:4] == ending


def test_without_options_a_training_instruction_is_drawn(env: SingleEnv) -> None:
    """Different seeds give different training instructions."""
    known = {row.instruction for row in ClevrRobot().instructed_goals("train")}
    drawn = {env.reset(seed=seed)[1]["instruction"] for seed in range(20)}
    assert drawn <= known
    assert len(drawn) > 10


def test_a_users_goal_needs_no_instruction(env: SingleEnv) -> None:
    """A built-in goal gets its first built-in instruction; an unknown one an empty sentence."""
    from kalm.envs.clevr_robot import AllOf

    info = env.reset(seed=0, options={"goal": PlaceGoal("red", "blue", "left")})[1]
    assert info["instruction"] == "Push the red ball to the left of the blue ball."
    own = AllOf(tuple(PlaceGoal(color, "red", "left") for color in ("blue", "green", "cyan", "purple")))
    assert env.reset(seed=0, options={"goal": own})[1]["instruction"] == ""


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"goals": 1}, ValueError, "goals.*goal, goal_split, instruction and observation"),
        ({"observation": np.zeros(9)}, ValueError, r"\(9,\).*\(10,\)"),
        ({"observation": np.full(10, np.nan)}, ValueError, "finite"),
        ({"goal": {"goal": "fly"}}, DataError, "fly"),
    ],
)
def test_bad_reset_options_are_refused(env: SingleEnv, options: dict, error: type[Exception], message: str) -> None:
    """The message says what was found and what is allowed."""
    with pytest.raises(error, match=message):
        env.reset(options=options)


def test_bad_steps_are_refused(env: SingleEnv) -> None:
    """A step before a reset, and actions out of range, raise."""
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))
    env.reset(seed=0)
    for action in (np.int64(40), np.int64(-1), 1.5):
        with pytest.raises(ValueError, match=r"\[0, 40\)"):
            env.step(action)  # type: ignore[arg-type]


def test_vector_environment_resets_some_and_lets_ended_ones_stand() -> None:
    """An ended episode stays as it is at reward 0 until ``reset_mask`` starts it anew; the others go on unmoved."""
    env = ClevrRobot().make_vector_env(2, 1)
    goals = [MoveGoal("red", "left"), PlaceGoal("red", "blue", "left")]
    env.reset(seed=[0, 1], options={"goals": goals, "observations": [START, START]})
    first, rewards, terminated, truncated, info = env.step(np.array([PUSH_RED_LEFT, 0]))
    assert terminated.tolist() == [True, False]
    assert info["is_success"].tolist() == [True, False]
    assert rewards[0] == 100.0
    second, rewards, terminated, _, _ = env.step(np.array([0, PUSH_RED_LEFT]))
    np.testing.assert_array_equal(second[0], first[0])
    assert not np.array_equal(second[1], first[1])
    assert (rewards[0], terminated[0]) == (0.0, True)
    options = {"goals": [goals[1], None], "reset_mask": np.array([True, False])}
    third, info = env.reset(seed=[5, None], options=options)
    np.testing.assert_array_equal(third[1], second[1])
    assert not np.array_equal(third[0], second[0])
    assert not info["is_success"].any()
    assert env.step(np.array([0, 0]))[2].tolist() == [False, False]


def test_vector_environment_refuses_bad_arguments() -> None:
    """Wrong counts, unknown options and early steps raise."""
    domain = ClevrRobot()
    with pytest.raises(ValueError, match="num_envs is 0"):
        domain.make_vector_env(0)
    env = domain.make_vector_env(2, 1)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match="seed has 3 values; there are 2"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="goal.*goals, goal_splits, instructions"):
        env.reset(options={"goal": None})
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"\[0, 40\)"):
        env.step(np.array([0, 40]))


def test_one_seed_for_a_vector_environment_counts_up() -> None:
    """``seed=7`` means 7, 8, ... as in Gymnasium."""
    env = ClevrRobot().make_vector_env(2, 1)
    np.testing.assert_array_equal(env.reset(seed=7)[0], env.reset(seed=[7, 8])[0])


def test_trying_actions_changes_nothing() -> None:
    """``try_actions`` foretells what ``step`` then does, from the state as it was."""
    env = ClevrRobot().make_vector_env(3, 1)
    env.reset(seed=0)
    tried = env.try_actions(np.array([0, 2]), np.array([[5, 6], [7, 8]]))  # type: ignore[attr-defined]
    after = env.step(np.array([6, 0, 7]))[0]
    np.testing.assert_array_equal(tried[0, 1], after[0])
    np.testing.assert_array_equal(tried[1, 0], after[2])


def test_render_is_off_unless_asked_for(env: SingleEnv) -> None:
    """No render mode, no picture; an unknown mode is refused."""
    env.reset(seed=0)
    assert env.render() is None
    with pytest.raises(ValueError, match="rgb_array"):
        SingleEnv(ClevrRobot(), render_mode="human")


def test_rendered_view_shows_the_balls_where_gl_exists() -> None:
    """Red lies upper left, cyan lower right: so do their colours in the picture, below the instruction."""
    env = SingleEnv(ClevrRobot(), render_mode="rgb_array", render_size=128)
    layout = np.array([-0.4, 0.5, 0.0, 0.5, 0.0, 0.1, 0.4, 0.5, 0.4, -0.1])
    env.reset(seed=0, options={"observation": layout, "instruction": ""})
    try:
        picture = env.render()
    except SimulatorError:
        pytest.skip("no GL on this machine")
    assert picture is not None
    assert picture.shape == (128, 128, 3)
    red, green, blue = (picture[..., channel].astype(int) for channel in range(3))
    is_red = (red - np.maximum(green, blue)) > 60
    is_cyan = (np.minimum(green, blue) - red) > 60
    for found, upper, left in ((is_red, True, True), (is_cyan, False, False)):
        rows, columns = np.nonzero(found)
        assert len(rows) > 50
        assert (rows.mean() < 64) == upper
        assert (columns.mean() < 64) == left
    env.reset(seed=0, options={"observation": layout, "instruction": "some words"})
    assert (env.render() != picture).any()
    env.close()


def test_no_gl_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no context can be made, the message names MUJOCO_GL and the picture that needs no GL."""
    from kalm.envs import scene_renderer

    def fail(size: int) -> None:
        raise RuntimeError("no display")

    monkeypatch.setattr(scene_renderer, "_make_gl_context", fail)
    env = SingleEnv(ClevrRobot(), render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(SimulatorError, match=r"MUJOCO_GL.*Domain\.draw"):
        env.render()
    env.close()
