"""Many Meta-World episodes at once, stepped on all cores by threads of one process.

Threads rather than processes: past the package's own ``step`` (see ``scene``) most of a step's time is MuJoCo's, which
runs outside Python's lock, and a thread needs neither its own copy of every scene nor a start of its own, leaves no
orphans and hears every signal that the process hears.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.envs.base import Goal
from kalm.envs.metaworld.domain import MetaWorld
from kalm.envs.metaworld.episode import Start, start_episode
from kalm.envs.metaworld.scene import SceneState
from kalm.envs.metaworld.scene_pool import borrowed_scene
from kalm.envs.vector_env import DomainVectorEnv

# Shapes: B environments, R rows of them, O numbers in an observation.


class MetaWorldVectorEnv(DomainVectorEnv):
    """B episodes, those of one task in the same scenes."""

    domain: MetaWorld

    def __init__(self, domain: MetaWorld, num_envs: int, num_threads: int | None = None) -> None:
        """Start the threads; scenes are built when a task first needs them.

        Args:
            domain: Whose goals and rules.
            num_envs: B.
            num_threads: Threads to step with; None takes all cores that this process may use.
        """
        super().__init__(domain, num_envs)
        if num_threads is None:
            num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._num_threads = max(1, min(num_threads, num_envs))
        self._threads = ThreadPoolExecutor(self._num_threads, "metaworld") if self._num_threads > 1 else None
        self._starts: dict[int, Start] = {}
        self._states: dict[int, SceneState] = {}

    def close(self, **kwargs: Any) -> None:
        """End the threads; the scenes stay for whoever comes next."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
            self._num_threads = 1
        super().close(**kwargs)

    def _begin(
        self,
        row: int,
        rng: np.random.Generator,
        goal: Goal | None,
        instruction: str | None,
        observation: NDArray[np.float64] | None,
    ) -> tuple[Goal, str, NDArray[np.float64]]:
        start = start_episode(
            self.domain,
            rng,
            goal=goal,
            instruction=instruction,
            observation=observation,
            absent_entity_noise=self.domain.absent_entity_noise,
        )
        self._starts[row], self._states[row] = start, start.state
        return start.goal, start.instruction, start.observation

    def _simulate(self, running: NDArray[np.intp], actions: NDArray[Any]) -> NDArray[np.float64]:
        """Step those of one task after another in one scene, as many scenes at once as threads."""
        indices_of: dict[str, list[int]] = {}
        for index, row in enumerate(running.tolist()):
            indices_of.setdefault(self._starts[row].goal.task, []).append(index)
        share = ceil(len(running) / self._num_threads)
        pieces = [(own[i : i + share], task) for task, own in indices_of.items() for i in range(0, len(own), share)]
        pieces.sort(key=lambda piece: -len(piece[0]))
        observation = np.empty((len(running), *self.domain.observation_space.shape))

        def simulate(indices: list[int], task: str) -> None:
            observation[indices] = self._simulate_in_a_scene(task, running[indices].tolist(), actions[indices])

        if self._threads is None or len(pieces) == 1:
            for piece in pieces:
                simulate(*piece)
        else:
            for future in [self._threads.submit(simulate, *piece) for piece in pieces]:
                future.result()
        return observation

    def _simulate_in_a_scene(self, task: str, rows: list[int], actions: NDArray[Any]) -> NDArray[np.float64]:
        """Step environments of one task in turn; what is seen then, shape (R, O)."""
        seen = []
        with borrowed_scene(task) as scene:
            for row, action in zip(rows, actions, strict=True):
                self._states[row] = scene.step(self._states[row], action)
                seen.append(scene.observe(self._states[row]) + self._starts[row].noise)
        return np.stack(seen)
