"""Many CLEVR-Robot episodes at once, stepped together on all cores in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from kalm.envs.base import Domain, Goal, reward_of_each, success_of_each
from kalm.envs.clevr_robot.episode import start_episode
from kalm.envs.clevr_robot.layout import NUM_ACTIONS, OBSERVATION_SIZE
from kalm.envs.clevr_robot.physics import ClevrRobotPhysics

# Shapes: B environments.
BoolArray = NDArray[np.bool_]


class ClevrRobotVectorEnv(gym.vector.VectorEnv[NDArray[np.float64], NDArray[np.int64], NDArray[Any]]):
    """B episodes that begin and end on their own; an ended one stands still until it is reset.

    Episode i depends on ``seed[i]`` and its options alone: not on B, its place or the number of threads, and it equals
    the episode of ``kalm/ClevrRobot-v0`` under that seed.

    ``reset`` takes the options ``goals``, ``instructions`` and ``observations`` (a value or None for each
    environment) and ``reset_mask`` (boolean, shape (B,): which to reset; the others go on). ``info`` holds
    ``is_success``, boolean, shape (B,), and ``instruction``, a list of B sentences.

    Args:
        domain: Whose goals and rules.
        num_envs: B.
        num_threads: Threads to step with; None takes all cores that this process may use.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED, "render_modes": []}

    def __init__(self, domain: Domain, num_envs: int, num_threads: int | None = None) -> None:
        """Build one simulator for all environments."""
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it must be 1 or more")
        super().__init__()
        self.domain = domain
        self.num_envs = num_envs
        self.single_observation_space = domain.observation_space
        self.single_action_space = domain.action_space
        self.observation_space = batch_space(domain.observation_space, num_envs)
        self.action_space = batch_space(domain.action_space, num_envs)
        self._physics = ClevrRobotPhysics(num_threads)
        self._state = self._physics.initial_state(np.zeros((num_envs, OBSERVATION_SIZE)))
        self._rngs = [seeding.np_random()[0] for _ in range(num_envs)]
        self._goals: list[Goal | None] = [None] * num_envs
        self._instructions = [""] * num_envs
        self._num_steps = np.zeros(num_envs, dtype=np.int64)
        self._max_steps = np.zeros(num_envs, dtype=np.int64)
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self._is_success = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Start episodes; see the class for the options. One seed s means s, s + 1, ... as in Gymnasium."""
        options = options or {}
        unknown = set(options) - {"goals", "instructions", "observations", "reset_mask"}
        if unknown:
            raise ValueError(
                f"reset got the options {sorted(unknown)}; it knows goals, instructions, observations and reset_mask"
            )
        seeds = self._per_env("seed", range(seed, seed + self.num_envs) if isinstance(seed, int) else seed)
        goals = self._per_env("goals", options.get("goals"))
        instructions = self._per_env("instructions", options.get("instructions"))
        observations = self._per_env("observations", options.get("observations"))
        chosen = np.asarray(self._per_env("reset_mask", options.get("reset_mask", [True] * self.num_envs)), np.bool_)
        for row in np.flatnonzero(chosen).tolist():
            if seeds[row] is not None:
                self._rngs[row] = seeding.np_random(seeds[row])[0]
            goal, self._instructions[row], layout = start_episode(
                self.domain, self._rngs[row], goals[row], instructions[row], observations[row]
            )
            self._goals[row] = goal
            self._state[row] = self._physics.initial_state(layout[None])[0]
            self._max_steps[row] = self.domain.max_steps(goal)
            self._is_success[row] = self.domain.success(goal, layout)
        self._num_steps[chosen] = 0
        self._terminated[chosen] = False
        self._truncated[chosen] = False
        return self._physics.observation(self._state), self._info()

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """Push once in every episode that has not ended.

        In an episode that has, nothing changes: the action is ignored, the reward is zero, the flags stay.
        """
        actions = np.asarray(actions)
        running = np.flatnonzero(~(self._terminated | self._truncated))
        before = self._physics.observation(self._state)
        rewards = np.zeros(self.num_envs)
        if len(running):
            goals = self._running_goals(running)
            taken = actions[running]
            self._check_actions(taken)
            self._state[running] = self._physics.step(self._state[running], taken)
            after = self._physics.observation(self._state)
            is_success = success_of_each(self.domain, goals, after[running], before[running], taken)
            rewards[running] = reward_of_each(self.domain, goals, before[running], taken, after[running])
            self._num_steps[running] += 1
            self._is_success[running] = is_success
            self._terminated[running] = is_success
            self._truncated[running] = ~is_success & (self._num_steps[running] >= self._max_steps[running])
        observation = self._physics.observation(self._state)
        return observation, rewards, self._terminated.copy(), self._truncated.copy(), self._info()

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

    def _running_goals(self, running: NDArray[np.int64]) -> list[Goal]:
        goals = [goal for row in running if (goal := self._goals[row]) is not None]
        if len(goals) < len(running):
            raise gym.error.ResetNeeded("step was called before every environment had been reset")
        return goals

    def _check_actions(self, taken: NDArray[np.int64]) -> None:
        bad = [action for action in taken if not self.single_action_space.contains(action)]
        if bad:
            raise ValueError(f"actions hold {bad[0]!r}; they must be integers in [0, {NUM_ACTIONS})")

    def _per_env(self, name: str, values: Any) -> Sequence[Any]:
        if values is None:
            return [None] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"{name} has {len(values)} values; there are {self.num_envs} environments, one value each")
        return values

    def _info(self) -> dict[str, Any]:
        return {"is_success": self._is_success.copy(), "instruction": list(self._instructions)}
