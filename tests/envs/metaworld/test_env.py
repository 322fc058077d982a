"""The environments: options, seeds, errors, threads, pictures."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import gymnasium as gym
import numpy as np
import pytest

from kalm.core.errors import DataError, SimulatorError
from kalm.envs import scene_renderer
from kalm.envs.metaworld import MetaWorld, TaskGoal
from kalm.envs.metaworld.layout import ENTITIES, OBSERVATION_SIZE, is_present
from kalm.envs.metaworld.package import import_metaworld
from kalm.envs.metaworld.tasks import TASKS
from kalm.envs.vector_env import SingleEnv

IDLE = np.zeros(4, dtype=np.float32)


def test_a_tasks_name_is_a_goal() -> None:
    """By our name or by the package's; a v2 name and an unknown option are refused."""
    env = SingleEnv(MetaWorld())
    first, info = env.reset(seed=0, options={"goal": "hammer"})
    again, _ = env.reset(seed=0, options={"goal": "hammer-v3"})
    np.testing.assert_array_equal(first, again)
    assert "hammer" in info["instruction"].lower()
    with pytest.raises(DataError, match="hammer-v3"):
        env.reset(options={"goal": "hammer-v2"})
    with pytest.raises(ValueError, match="knows goal"):
        env.reset(options={"task": "hammer"})


@pytest.mark.parametrize("task", TASKS)
def test_what_is_in_the_scene_is_seen_and_nothing_else(task: str) -> None:
    """91 numbers; absent entities are zero, present ones have unit quaternions."""
    observation, _ = SingleEnv(MetaWorld()).reset(seed=1, options={"goal": task})
    assert observation.shape == (OBSERVATION_SIZE,) == (91,)
    expected = {entity.name for entity in TASKS[task].entities}
    assert {name for name in ENTITIES if is_present(observation, name)} == expected
    parts = observation[7:].reshape(12, 7)
    norms = np.linalg.norm(parts[:, 3:], axis=1)
    np.testing.assert_allclose(norms[norms > 0], 1.0, atol=1e-6)
    assert not parts[norms == 0].any()


def test_absent_entity_noise_makes_up_one_entity_that_stays() -> None:
    """It is the same through an episode, another in the next, and none by default."""
    env = SingleEnv(MetaWorld(absent_entity_noise=True))
    made_up = []
    for seed in range(6):
        first, _ = env.reset(seed=seed, options={"goal": "reach"})
        after, *_ = env.step(IDLE)
        extra = [name for name in ENTITIES if is_present(first, name) and name != "target_object"]
        assert len(extra) == 1
        assert [name for name in ENTITIES if is_present(after, name) and name != "target_object"] == extra
        made_up += extra
    assert len(set(made_up)) > 1


def test_horizon_truncates() -> None:
    """An idle episode ends after as many steps as the constructor says."""
    env = SingleEnv(MetaWorld(horizon=3))
    env.reset(seed=0, options={"goal": "push"})
    ends = [env.step(IDLE)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_bad_actions_and_a_missing_reset_are_named() -> None:
    """Out of range, wrong shape, not a number; stepping before a reset."""
    env = SingleEnv(MetaWorld())
    with pytest.raises(gym.error.ResetNeeded):
        env.step(IDLE)
    env.reset(seed=0)
    for action in (IDLE + 2, IDLE[:3], IDLE * np.nan):
        with pytest.raises(ValueError, match="4 numbers in"):
            env.step(action)


def test_rows_of_one_task_share_scenes_across_threads() -> None:
    """Six episodes of two tasks are the same on one thread and on three, and an ended one stands still."""
    goals = [TaskGoal("reach", max_steps=5), TaskGoal("door-open", max_steps=5)] * 3
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 6, 4)).astype(np.float32)
    seen = []
    for num_threads in (1, 3):
        env = MetaWorld().make_vector_env(6, num_threads)
        env.reset(seed=list(range(6)), options={"goals": goals})
        steps = [env.step(action) for action in actions]
        assert steps[4][3].all()
        np.testing.assert_array_equal(steps[4][0], steps[5][0])
        assert not steps[5][1].any()
        seen.append(np.stack([step[0] for step in steps]))
        env.close()
        env.close()
    np.testing.assert_array_equal(*seen)
    assert len(np.unique(seen[0][0], axis=0)) == 6


def test_no_gl_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no context can be made, the message names MUJOCO_GL=osmesa and its library."""

    def fail(size: int) -> None:
        raise RuntimeError("no display")

    monkeypatch.setattr(scene_renderer, "_make_gl_context", fail)
    env = SingleEnv(MetaWorld(), render_mode="rgb_array")
    env.reset(seed=0)
    with pytest.raises(SimulatorError, match=r"MUJOCO_GL=osmesa with libosmesa6.*Domain\.draw"):
        env.render()
    env.close()


def test_renders_where_gl_exists() -> None:
    """In a process of its own, since MuJoCo takes its GL library at import; skipped where there is none."""
    program = (
        "import sys, gymnasium as gym\n"
        "from kalm.core.errors import SimulatorError\n"
        "env = gym.make('kalm.envs.metaworld:kalm/MetaWorld-v0', render_mode='rgb_array', render_size=96)\n"
        "env.reset(seed=0, options={'goal': 'hammer'})\n"
        "try:\n    picture = env.render()\nexcept SimulatorError:\n    sys.exit(77)\n"
        "assert picture.shape == (96, 96, 3) and picture.std() > 20\n"
        "env.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("no GL here")
    assert done.returncode == 0, done.stderr


def test_another_mujoco_is_named_with_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version found, the version needed and how to install it."""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "3.9.9" if name == "mujoco" else real(name))
    with pytest.raises(SimulatorError, match=r"mujoco 3\.9\.9 is installed.*needs mujoco ==.*pip install 'mujoco=="):
        import_metaworld.__wrapped__()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed at all."""

    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    with pytest.raises(SimulatorError, match="metaworld is not installed"):
        import_metaworld.__wrapped__()


def test_the_domain_alone_imports_no_simulator() -> None:
    """Training on a finished store needs none, nor does printing the help."""
    program = (
        "import sys, numpy as np\n"
        "from kalm.envs.metaworld import MetaWorld\n"
        "domain = MetaWorld()\n"
        "goal = domain.instructed_goals('train')[0].goal\n"
        "goal.success(np.zeros((2, 91)))\n"
        "sys.exit(bool({'mujoco', 'metaworld'} & set(sys.modules)))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("task", ["reach", "door-close", "hammer"])
def test_imagination_begins_in_the_tasks_own_scene(task: str) -> None:
    """What the environment shows after a reset to the same task by the same chance; not the same twice."""
    domain, goal = MetaWorld(), TaskGoal(task)
    env = SingleEnv(domain)
    shown, _ = env.reset(seed=3, options={"goal": goal})
    rng = np.random.default_rng(np.random.PCG64(np.random.SeedSequence(3)))
    first = domain.first_observation(goal, rng)
    np.testing.assert_array_equal(first, shown)
    assert not np.array_equal(first, domain.first_observation(goal, rng))
    env.close()


def test_every_number_belongs_to_one_thing() -> None:
    """Gripper, target location and twelve entities, and nothing is left of the 91 numbers."""
    domain = MetaWorld()
    columns = [column for thing in domain.things for column in range(thing.start, thing.stop)]
    assert columns == list(range(91))
    assert [thing.stop - thing.start for thing in domain.things] == [4, 3] + [7] * 12


def test_a_thing_is_there_for_a_whole_rollout_or_not_at_all() -> None:
    """The numbers of what a scene lacks stay zero, those of what it has are never all zero."""
    domain = MetaWorld()
    assert [slice_.stop - slice_.start for slice_ in domain.entities] == [7] * 12
    for rollout in domain.collect(10, seed=4):
        is_there = [(rollout.observations[:, entity] != 0).any(axis=1) for entity in domain.entities]
        assert all(values.all() or not values.any() for values in is_there)
        assert sum(values.any() for values in is_there) == len(TASKS[rollout.goal["task"]].entities)
