"""Gymnasium finds the environments of installed worlds by name alone, in any process."""

from __future__ import annotations

import subprocess
import sys

import pytest

NAMES = [
    "kalm.envs.clevr_robot:kalm/ClevrRobot-v0",
    "kalm.envs.metaworld:kalm/MetaWorld-v0",
    "kalm.envs.babyai:kalm/BabyAI-v0",
]


def run(program: str) -> None:
    """In a process that has imported nothing of kalm, and away from the sources."""
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_an_environment_is_made_without_importing_kalm(name: str) -> None:
    """Its name says which package registers it (Gymnasium reads no entry points since 1.0)."""
    run(
        f"import gymnasium\n"
        f"env = gymnasium.make({name!r})\n"
        f"observation, info = env.reset(seed=0)\n"
        f"assert env.observation_space.contains(observation) and info['instruction']\n"
        f"assert env.spec.id == {name.split(':')[1]!r}\n"
    )


def test_the_settings_of_a_world_follow_its_name() -> None:
    """An idle episode is truncated after the horizon that was asked for."""
    run(
        f"import gymnasium, numpy\n"
        f"env = gymnasium.make({NAMES[1]!r}, horizon=2)\n"
        f"env.reset(seed=0, options={{'goal': 'push'}})\n"
        f"ends = [env.step(numpy.zeros(4, numpy.float32))[2:4] for _ in range(2)]\n"
        f"assert ends == [(False, False), (False, True)], ends\n"
    )


@pytest.mark.parametrize("name", NAMES)
def test_spawned_workers_make_environments_too(name: str) -> None:
    """A worker that begins from nothing gives the episodes that this process gives."""
    run(
        f"import gymnasium, numpy\n"
        f"if __name__ == '__main__':\n"
        f"    envs = gymnasium.vector.AsyncVectorEnv([lambda: gymnasium.make({name!r})] * 2, context='spawn')\n"
        f"    seen, _ = envs.reset(seed=[3, 4])\n"
        f"    expected = [gymnasium.make({name!r}).reset(seed=seed)[0] for seed in (3, 4)]\n"
        f"    numpy.testing.assert_array_equal(seen, numpy.stack(expected))\n"
        f"    envs.close()\n"
    )
