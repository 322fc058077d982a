"""Many CLEVR-Robot episodes at once, stepped together on all cores in one process."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Array, Goal
from kalm.envs.base import Domain
from kalm.envs.clevr_robot.layout import OBSERVATION_SIZE, sample_layout
from kalm.envs.clevr_robot.physics import ClevrRobotPhysics
from kalm.envs.scene_renderer import SceneRenderer
from kalm.envs.vector_env import DomainVectorEnv


class ClevrRobotVectorEnv(DomainVectorEnv):
    """B episodes in one simulator."""

    _of_this_process: ClassVar[tuple[str, ...]] = ("_renderer",)

    def __init__(self, domain: Domain, num_envs: int, num_threads: int | None = None) -> None:
        """Build one simulator for all environments; GL is not touched before the first picture.

        Args:
            domain: Whose goals.
            num_envs: B.
            num_threads: Threads to step with; None takes all cores that this process may use.
        """
        super().__init__(domain, num_envs)
        self._physics = ClevrRobotPhysics(num_threads)
        self._state = self._physics.initial_state(np.zeros((num_envs, OBSERVATION_SIZE)))
        self._renderer: SceneRenderer | None = None

    def try_actions(self, rows: NDArray[np.int64], actions: NDArray[np.int64]) -> NDArray[np.float64]:
        """What each of C actions would lead to in N of the environments; nothing changes.

        Args:
            rows: Which environments, shape (N,).
            actions: Shape (N, C).

        Returns:
            Observations after each action, shape (N, C, 10).
        """
        state = np.repeat(self._state[rows], actions.shape[1], axis=0)
        after = self._physics.observation(self._physics.step(state, actions.ravel()))
        return after.reshape(*actions.shape, OBSERVATION_SIZE)

    def _lay_out(self, row: int, rng: np.random.Generator, goal: Goal) -> Array:
        return self._restore(row, goal, sample_layout(rng))

    def _restore(self, row: int, goal: Goal, observation: Array) -> Array:
        self._state[row] = self._physics.initial_state(observation[None])[0]
        return self._physics.observation(self._state[row])

    def _simulate(self, rows: NDArray[np.intp], actions: Array) -> Array:
        self._state[rows] = self._physics.step(self._state[rows], actions)
        return self._physics.observation(self._state[rows])

    def picture(self, row: int, size: int) -> NDArray[np.uint8]:
        """View from above; it needs GL."""
        if self._renderer is None:
            self._renderer = SceneRenderer(self._physics.model, size)
        return self._renderer.render(self._physics.positions(self._state)[row], self._instructions[row])

    def close_extras(self, **kwargs: object) -> None:
        """Free the GL context, if one was made."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
