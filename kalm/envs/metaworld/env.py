"""``kalm/MetaWorld-v0``: one Meta-World episode at a time, for Gymnasium."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from numpy.typing import NDArray

from kalm.envs.metaworld.domain import MetaWorld
from kalm.envs.metaworld.episode import Start, start_episode
from kalm.envs.metaworld.scene_pool import borrowed_scene
from kalm.envs.scene_renderer import SceneRenderer

Observation = NDArray[np.float64]


class MetaWorldEnv(gym.Env[Any, Any]):
    """A robot arm at a table and an instruction; each action moves the hand by up to a centimetre.

    ``reset`` takes the options ``task`` (its name) or ``goal`` (a goal or its JSON form), ``instruction`` (a sentence
    for it), and ``observation`` (what to start from; see ``restoring`` for what cannot be restored). Without task and
    goal, a training instruction is drawn. All draws depend on the seed alone.

    ``info`` holds ``is_success`` and ``instruction`` after every reset and step. An episode is terminated on success
    and truncated after ``max_steps``.

    Args:
        render_mode: None or ``rgb_array``, a view from the front that needs GL.
        render_size: Pixels along each side of a picture.
        max_steps: Steps after which an episode is truncated (paper: 100).
        absent_entity_noise: Whether each episode shows one entity that is not there, at a random place.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(
        self,
        render_mode: str | None = None,
        render_size: int = 256,
        max_steps: int = 100,
        absent_entity_noise: bool = False,
    ) -> None:
        """Check the arguments; the first ``reset`` to a task builds its scene, the first ``render`` touches GL."""
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; it must be None or 'rgb_array'")
        self.render_mode = render_mode
        self.render_size = render_size
        self.domain = MetaWorld(horizon=max_steps, absent_entity_noise=absent_entity_noise)
        self.observation_space = self.domain.observation_space
        self.action_space = self.domain.action_space
        self._start: Start | None = None
        self._renderer: tuple[str, SceneRenderer] | None = None
        self._num_steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see the class for the options."""
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - {"task", "goal", "instruction", "observation"}
        if unknown:
            raise ValueError(f"reset got the options {sorted(unknown)}; it knows task, goal, instruction, observation")
        noise = self.domain.absent_entity_noise
        self._start = start_episode(self.domain, self.np_random, absent_entity_noise=noise, **options)
        self._state, self._observation = self._start.state, self._start.observation
        self._num_steps = 0
        is_success = bool(self.domain.success(self._start.goal, self._observation))
        return self._observation.copy(), {"is_success": is_success, "instruction": self._start.instruction}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the hand and the gripper once."""
        if self._start is None:
            raise gym.error.ResetNeeded("step was called before reset")
        action = np.asarray(action, dtype=np.float32)
        if not self.action_space.contains(action):
            raise ValueError(f"action is {action!r}; it must be 4 numbers in [-1, 1]")
        goal, before = self._start.goal, self._observation
        with borrowed_scene(goal.task) as scene:
            self._state = scene.step(self._state, action)
            self._observation = scene.observe(self._state) + self._start.noise
        after = self._observation
        self._num_steps += 1
        is_success = bool(self.domain.success(goal, after, before, action))
        reward = float(self.domain.reward(goal, before, action, after))
        truncated = not is_success and self._num_steps >= self.domain.max_steps(goal)
        info = {"is_success": is_success, "instruction": self._start.instruction}
        return after.copy(), reward, is_success, truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """View from the front with the instruction written on it, shape (size, size, 3), or None without render mode.

        Raises:
            SimulatorError: If there is no GL here; ``MetaWorld.draw`` needs none.
        """
        if self.render_mode is None or self._start is None:
            return None
        task = self._start.goal.task
        with borrowed_scene(task) as scene:
            if self._renderer is None or self._renderer[0] != task:
                self.close()
                self._renderer = task, SceneRenderer(scene.model, self.render_size, camera=_camera())
            renderer = self._renderer[1]
            scene.show(self._state)
            return renderer.render_data(scene.model, scene.data, self._start.instruction)

    def close(self) -> None:
        """Free the GL context, if one was made."""
        if self._renderer is not None:
            self._renderer[1].close()
            self._renderer = None


def _camera() -> mujoco.MjvCamera:
    """From the robot's right, over the table; the package's own cameras show it upside down or from behind the arm."""
    camera = mujoco.MjvCamera()
    camera.lookat[:] = 0.0, 0.65, 0.12
    camera.distance, camera.azimuth, camera.elevation = 1.45, 150.0, -32.0
    return camera
