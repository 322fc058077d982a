"""Many CLEVR-Robot episodes at once, stepped together on all cores in one process."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.envs.base import Domain, Goal
from kalm.envs.clevr_robot.episode import start_episode
from kalm.envs.clevr_robot.layout import OBSERVATION_SIZE
from kalm.envs.clevr_robot.physics import ClevrRobotPhysics
from kalm.envs.vector_env import DomainVectorEnv


class ClevrRobotVectorEnv(DomainVectorEnv):
    """B episodes in one simulator."""

    def __init__(self, domain: Domain, num_envs: int, num_threads: int | None = None) -> None:
        """Build one simulator for all environments.

        Args:
            domain: Whose goals and rules.
            num_envs: B.
            num_threads: Threads to step with; None takes all cores that this process may use.
        """
        super().__init__(domain, num_envs)
        self._physics = ClevrRobotPhysics(num_threads)
        self._state = self._physics.initial_state(np.zeros((num_envs, OBSERVATION_SIZE)))

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

    def _begin(
        self,
        row: int,
        rng: np.random.Generator,
        goal: Goal | None,
        instruction: str | None,
        observation: NDArray[np.float64] | None,
    ) -> tuple[Goal, str, NDArray[np.float64]]:
        chosen, sentence, layout = start_episode(self.domain, rng, goal, instruction, observation)
        self._state[row] = self._physics.initial_state(layout[None])[0]
        return chosen, sentence, self._physics.observation(self._state[row])

    def _simulate(self, running: NDArray[np.intp], actions: NDArray[Any]) -> NDArray[np.float64]:
        self._state[running] = self._physics.step(self._state[running], actions)
        return self._physics.observation(self._state[running])
