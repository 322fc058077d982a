"""``kalm/ClevrRobot-v0``: one CLEVR-Robot episode at a time, for Gymnasium."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.envs.base import Goal
from kalm.envs.clevr_robot.domain import ClevrRobot
from kalm.envs.clevr_robot.episode import start_episode
from kalm.envs.clevr_robot.layout import NUM_ACTIONS, OBSERVATION_SIZE
from kalm.envs.clevr_robot.physics import ClevrRobotPhysics
from kalm.envs.scene_renderer import SceneRenderer

Observation = NDArray[np.float64]


class ClevrRobotEnv(gym.Env[Any, Any]):
    """Five balls on a table and an instruction about them; each action pushes one ball once.

    ``reset`` takes three options: ``observation`` (ball centres to start from), ``goal`` (a goal or its JSON form) and
    ``instruction`` (a sentence for it). Without a goal, a training instruction is drawn. With no ``observation``, balls
    are placed so that the goal is not true already. Both draws depend on the seed alone.

    ``info`` holds ``is_success`` and ``instruction`` after every reset and step. An episode is terminated on success
    and truncated after the goal's ``max_steps``.

    Args:
        render_mode: None or ``rgb_array``, a view from above that needs GL.
        render_size: Pixels along each side of a picture.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, render_mode: str | None = None, render_size: int = 256) -> None:
        """Build the simulator; GL is not touched before the first ``render``."""
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; it must be None or 'rgb_array'")
        self.render_mode = render_mode
        self.render_size = render_size
        self.domain = ClevrRobot()
        self.observation_space = self.domain.observation_space
        self.action_space = self.domain.action_space
        self._physics = ClevrRobotPhysics(num_threads=1)
        self._renderer: SceneRenderer | None = None
        self._goal: Goal | None = None
        self._instruction = ""
        self._state = self._physics.initial_state(np.zeros((1, OBSERVATION_SIZE)))
        self._num_steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see the class for the options."""
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - {"observation", "goal", "instruction"}
        if unknown:
            raise ValueError(f"reset got the options {sorted(unknown)}; it knows observation, goal and instruction")
        self._goal, self._instruction, observation = start_episode(self.domain, self.np_random, **options)
        self._state = self._physics.initial_state(observation[None])
        self._num_steps = 0
        is_success = bool(self.domain.success(self._goal, observation))
        return observation, {"is_success": is_success, "instruction": self._instruction}

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Push once."""
        if self._goal is None:
            raise gym.error.ResetNeeded("step was called before reset")
        if not self.action_space.contains(action):
            raise ValueError(f"action is {action!r}; it must be an integer in [0, {NUM_ACTIONS})")
        goal = self._goal
        before = self._physics.observation(self._state)
        self._state = self._physics.step(self._state, np.array([action]))
        after = self._physics.observation(self._state)
        self._num_steps += 1
        taken = np.array([action])
        is_success = bool(self.domain.success(goal, after, before, taken)[0])
        reward = float(self.domain.reward(goal, before, taken, after)[0])
        truncated = not is_success and self._num_steps >= self.domain.max_steps(goal)
        info = {"is_success": is_success, "instruction": self._instruction}
        return after[0], reward, is_success, truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """View from above with the instruction written on it, shape (size, size, 3), or None without render mode.

        Raises:
            SimulatorError: If there is no GL here; ``ClevrRobot.draw`` needs none.
        """
        if self.render_mode is None:
            return None
        if self._renderer is None:
            self._renderer = SceneRenderer(self._physics.model, self.render_size)
        return self._renderer.render(self._physics.positions(self._state)[0], self._instruction)

    def close(self) -> None:
        """Free the GL context, if one was made."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
