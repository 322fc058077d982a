"""Many episodes at once: what the vectorised environments of all domains share, but for the simulator.

Shapes: B environments, R rows of them, O numbers in an observation, A in an action.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from kalm.envs.base import Domain, Goal, reward_of_each, success_of_each

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

_OPTIONS = {"goals", "instructions", "observations", "reset_mask"}


class DomainVectorEnv(gym.vector.VectorEnv[FloatArray, NDArray[Any], NDArray[Any]], ABC):
    """B episodes that begin and end on their own; an ended one stands still until it is reset.

    Episode i depends on ``seed[i]`` and its options alone: not on B, its place or the number of threads, and it equals
    the episode of the domain's single environment under that seed.

    ``reset`` takes the options ``goals``, ``instructions`` and ``observations`` (a value or None for each
    environment) and ``reset_mask`` (boolean, shape (B,): which to reset; the others go on). ``info`` holds
    ``is_success``, boolean, shape (B,), and ``instruction``, a list of B sentences.

    A domain says how an episode begins (``_begin``) and what a step leads to (``_simulate``).
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED, "render_modes": []}

    def __init__(self, domain: Domain, num_envs: int) -> None:
        """Keep the domain's spaces and rules; nothing has begun.

        Args:
            domain: Whose goals and rules.
            num_envs: B.

        Raises:
            ValueError: If ``num_envs`` is below 1.
        """
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it must be 1 or more")
        super().__init__()
        self.domain = domain
        self.num_envs = num_envs
        self.single_observation_space = domain.observation_space
        self.single_action_space = domain.action_space
        self.observation_space = batch_space(domain.observation_space, num_envs)
        self.action_space = batch_space(domain.action_space, num_envs)
        self._rngs = [seeding.np_random()[0] for _ in range(num_envs)]
        self._goals: list[Goal | None] = [None] * num_envs
        self._instructions = [""] * num_envs
        self._observation = np.zeros((num_envs, *domain.observation_space.shape))
        self._num_steps = np.zeros(num_envs, dtype=np.int64)
        self._max_steps = np.zeros(num_envs, dtype=np.int64)
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self._is_success = np.zeros(num_envs, dtype=np.bool_)

    @abstractmethod
    def _begin(
        self,
        row: int,
        rng: np.random.Generator,
        goal: Goal | None,
        instruction: str | None,
        observation: FloatArray | None,
    ) -> tuple[Goal, str, FloatArray]:
        """Begin an episode in one environment, drawing from ``rng`` what is None.

        Returns:
            Its goal, its instruction, and what is seen, shape (O,).
        """

    @abstractmethod
    def _simulate(self, running: NDArray[np.intp], actions: NDArray[Any]) -> FloatArray:
        """Carry out one action in each of some environments.

        Args:
            running: Which, shape (R,).
            actions: Of the action space each, shape (R,) or (R, A).

        Returns:
            What is seen then, shape (R, O).
        """

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Start episodes; see the class for the options. One seed s means s, s + 1, ... as in Gymnasium."""
        options = options or {}
        unknown = set(options) - _OPTIONS
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
            goal, instruction, observation = self._begin(
                row, self._rngs[row], goals[row], instructions[row], observations[row]
            )
            self._goals[row], self._instructions[row], self._observation[row] = goal, instruction, observation
            self._max_steps[row] = self.domain.max_steps(goal)
            self._is_success[row] = self.domain.success(goal, observation)
        self._num_steps[chosen] = 0
        self._terminated[chosen] = False
        self._truncated[chosen] = False
        return self._observation.copy(), self._info()

    def step(self, actions: NDArray[Any]) -> tuple[FloatArray, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """Act once in every episode that has not ended.

        In an episode that has, nothing changes: the action is ignored, the reward is zero, the flags stay.
        """
        is_box = isinstance(self.single_action_space, gym.spaces.Box)
        actions = np.asarray(actions, dtype=self.single_action_space.dtype if is_box else None)
        running = np.flatnonzero(~(self._terminated | self._truncated))
        rewards = np.zeros(self.num_envs)
        if len(running):
            goals, before, taken = self._running_goals(running), self._observation[running], actions[running]
            self._check_actions(taken)
            after = self._observation[running] = self._simulate(running, taken)
            is_success = success_of_each(self.domain, goals, after, before, taken)
            rewards[running] = reward_of_each(self.domain, goals, before, taken, after)
            self._num_steps[running] += 1
            self._is_success[running] = is_success
            self._terminated[running] = is_success
            self._truncated[running] = ~is_success & (self._num_steps[running] >= self._max_steps[running])
        return self._observation.copy(), rewards, self._terminated.copy(), self._truncated.copy(), self._info()

    def _running_goals(self, running: NDArray[np.intp]) -> list[Goal]:
        goals = [goal for row in running if (goal := self._goals[row]) is not None]
        if len(goals) < len(running):
            raise gym.error.ResetNeeded("step was called before every environment had been reset")
        return goals

    def _check_actions(self, taken: NDArray[Any]) -> None:
        bad = [action for action in taken if not self.single_action_space.contains(action)]
        if bad:
            raise ValueError(f"actions hold {bad[0]!r}; each must be {_what_fits(self.single_action_space)}")

    def _per_env(self, name: str, values: Any) -> Sequence[Any]:
        if values is None:
            return [None] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"{name} has {len(values)} values; there are {self.num_envs} environments, one value each")
        return values

    def _info(self) -> dict[str, Any]:
        return {"is_success": self._is_success.copy(), "instruction": list(self._instructions)}


def _what_fits(space: gym.Space[Any]) -> str:
    if isinstance(space, gym.spaces.Discrete):
        return f"an integer in [0, {space.n})"
    assert isinstance(space, gym.spaces.Box)
    return f"{space.shape[0]} numbers in [{space.low.min():g}, {space.high.max():g}]"
