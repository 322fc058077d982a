"""Many Meta-World episodes at once, stepped on all cores by threads of one process.

Threads rather than processes: past the package's own ``step`` (see ``scene``) most of a step's time is MuJoCo's, which
runs outside Python's lock, and a thread needs neither its own copy of every scene nor a start of its own, leaves no
orphans and hears every signal that the process hears.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from kalm.envs.base import reward_of_each, success_of_each
from kalm.envs.metaworld.domain import MetaWorld
from kalm.envs.metaworld.episode import Start, start_episode
from kalm.envs.metaworld.layout import OBSERVATION_SIZE
from kalm.envs.metaworld.scene import SceneState
from kalm.envs.metaworld.scene_pool import borrowed_scene

# Shapes: B environments, R rows of it that one thread steps in turn.
BoolArray = NDArray[np.bool_]


class MetaWorldVectorEnv(gym.vector.VectorEnv[NDArray[np.float64], NDArray[np.float32], NDArray[Any]]):
    """B episodes that begin and end on their own; an ended one stands still until it is reset.

    Episode i depends on ``seed[i]`` and its options alone: not on B, its place or the number of threads, and it equals
    the episode of ``kalm/MetaWorld-v0`` under that seed.

    ``reset`` takes the options ``goals``, ``instructions`` and ``observations`` (a value or None for each
    environment) and ``reset_mask`` (boolean, shape (B,): which to reset; the others go on). ``info`` holds
    ``is_success``, boolean, shape (B,), and ``instruction``, a list of B sentences.

    Args:
        domain: Whose goals and rules.
        num_envs: B.
        num_threads: Threads to step with; None takes all cores that this process may use.
    """

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED, "render_modes": []}

    def __init__(self, domain: MetaWorld, num_envs: int, num_threads: int | None = None) -> None:
        """Start the threads; scenes are built when a task first needs them."""
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it must be 1 or more")
        super().__init__()
        self.domain = domain
        self.num_envs = num_envs
        self.single_observation_space = domain.observation_space
        self.single_action_space = domain.action_space
        self.observation_space = batch_space(domain.observation_space, num_envs)
        self.action_space = batch_space(domain.action_space, num_envs)
        if num_threads is None:
            num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._num_threads = max(1, min(num_threads, num_envs))
        self._threads = ThreadPoolExecutor(self._num_threads, "metaworld") if self._num_threads > 1 else None
        self._rngs = [seeding.np_random()[0] for _ in range(num_envs)]
        self._starts: list[Start | None] = [None] * num_envs
        self._states: list[SceneState | None] = [None] * num_envs
        self._observation = np.zeros((num_envs, OBSERVATION_SIZE))
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
            start = start_episode(
                self.domain,
                self._rngs[row],
                goal=goals[row],
                instruction=instructions[row],
                observation=observations[row],
                absent_entity_noise=self.domain.absent_entity_noise,
            )
            self._starts[row], self._states[row] = start, start.state
            self._observation[row] = start.observation
            self._max_steps[row] = self.domain.max_steps(start.goal)
            self._is_success[row] = self.domain.success(start.goal, start.observation)
        self._num_steps[chosen] = 0
        self._terminated[chosen] = False
        self._truncated[chosen] = False
        return self._observation.copy(), self._info()

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """Act once in every episode that has not ended.

        In an episode that has, nothing changes: the action is ignored, the reward is zero, the flags stay.
        """
        actions = np.asarray(actions, dtype=np.float32)
        running = np.flatnonzero(~(self._terminated | self._truncated))
        rewards = np.zeros(self.num_envs)
        if len(running):
            starts = self._running_starts(running)
            taken = actions[running]
            self._check_actions(taken)
            before = self._observation[running]
            self._simulate(running, starts, actions)
            after, goals = self._observation[running], [start.goal for start in starts]
            is_success = success_of_each(self.domain, goals, after, before, taken)
            rewards[running] = reward_of_each(self.domain, goals, before, taken, after)
            self._num_steps[running] += 1
            self._is_success[running] = is_success
            self._terminated[running] = is_success
            self._truncated[running] = ~is_success & (self._num_steps[running] >= self._max_steps[running])
        return self._observation.copy(), rewards, self._terminated.copy(), self._truncated.copy(), self._info()

    def close(self, **kwargs: Any) -> None:
        """End the threads; the scenes stay for whoever comes next."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
            self._num_threads = 1
        super().close(**kwargs)

    def _simulate(self, running: NDArray[np.intp], starts: list[Start], actions: NDArray[np.float32]) -> None:
        """Step the running rows, those of one task after another in one scene, as many scenes at once as threads."""
        rows_of: dict[str, list[int]] = {}
        for row, start in zip(running.tolist(), starts, strict=True):
            rows_of.setdefault(start.goal.task, []).append(row)
        share = ceil(len(running) / self._num_threads)
        pieces = [(rows[i : i + share], task) for task, rows in rows_of.items() for i in range(0, len(rows), share)]
        if self._threads is None or len(pieces) == 1:
            for rows, task in pieces:
                self._simulate_rows(rows, task, actions)
            return
        pieces.sort(key=lambda piece: -len(piece[0]))
        futures = [self._threads.submit(self._simulate_rows, rows, task, actions) for rows, task in pieces]
        for future in futures:
            future.result()

    def _simulate_rows(self, rows: list[int], task: str, actions: NDArray[np.float32]) -> None:
        with borrowed_scene(task) as scene:
            for row in rows:
                start, state = self._starts[row], self._states[row]
                assert start is not None
                assert state is not None
                state = scene.step(state, actions[row])
                self._states[row] = state
                self._observation[row] = scene.observe(state) + start.noise

    def _running_starts(self, running: NDArray[np.intp]) -> list[Start]:
        starts = [start for row in running if (start := self._starts[row]) is not None]
        if len(starts) < len(running):
            raise gym.error.ResetNeeded("step was called before every environment had been reset")
        return starts

    def _check_actions(self, taken: NDArray[np.float32]) -> None:
        bad = [action for action in taken if not self.single_action_space.contains(action)]
        if bad:
            raise ValueError(f"actions hold {bad[0]!r}; each must be 4 numbers in [-1, 1]")

    def _per_env(self, name: str, values: Any) -> Sequence[Any]:
        if values is None:
            return [None] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"{name} has {len(values)} values; there are {self.num_envs} environments, one value each")
        return values

    def _info(self) -> dict[str, Any]:
        instructions = ["" if start is None else start.instruction for start in self._starts]
        return {"is_success": self._is_success.copy(), "instruction": instructions}
