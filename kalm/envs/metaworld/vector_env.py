"""Many Meta-World episodes at once, stepped on all cores by threads of one process.

Threads rather than processes: past the package's own ``step`` (see ``scene``) most of a step's time is MuJoCo's, which
runs outside Python's lock, and a thread needs neither its own copy of every scene nor a start of its own, leaves no
orphans and hears every signal that the process hears.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import TYPE_CHECKING, ClassVar

import mujoco
import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Array, Goal
from kalm.envs.metaworld.layout import ENTITIES, OBSERVATION_SIZE, pose_slice
from kalm.envs.metaworld.restoring import restore
from kalm.envs.metaworld.scene import SceneState, borrowed_scene
from kalm.envs.metaworld.tasks import TASKS
from kalm.envs.scene_renderer import SceneRenderer
from kalm.envs.vector_env import DomainVectorEnv, usable_cores

if TYPE_CHECKING:
    from kalm.envs.metaworld.domain import MetaWorld

# Where a random absent entity is shown: over the table, turned about the vertical axis.
_NOISE_LOW, _NOISE_HIGH = np.array([-0.4, 0.4, 0.0]), np.array([0.4, 0.9, 0.3])


class MetaWorldVectorEnv(DomainVectorEnv):
    """B episodes, those of one task in the same scenes."""

    domain: MetaWorld
    _of_this_process: ClassVar[tuple[str, ...]] = ("_threads", "_renderer")

    def __init__(self, domain: MetaWorld, num_envs: int, num_threads: int | None = None) -> None:
        """Begin nothing: scenes are built when a task first needs them, threads by the first step, GL by a picture."""
        super().__init__(domain, num_envs)
        num_threads = usable_cores() if num_threads is None else num_threads
        self._num_threads = max(1, min(num_threads, num_envs))
        self._threads: ThreadPoolExecutor | None = None
        self._renderer: tuple[str, SceneRenderer] | None = None
        self._task_of_row = [""] * num_envs
        self._states: dict[int, SceneState] = {}
        self._noise = np.zeros((num_envs, OBSERVATION_SIZE))  # an absent entity that is made up, through an episode

    def close_extras(self, **kwargs: object) -> None:
        """End the threads and free the GL context; the scenes stay for whoever comes next."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        if self._renderer is not None:
            self._renderer[1].close()
        self._threads = self._renderer = None

    def _lay_out(self, row: int, rng: np.random.Generator, goal: Goal, goal_split: str) -> Array:
        with borrowed_scene(goal.task) as scene:
            self._task_of_row[row], self._states[row] = goal.task, scene.lay_out(rng)
            seen = scene.observe(self._states[row])
        self._noise[row] = _made_up_entity(rng, goal.task) if self.domain.absent_entity_noise else 0.0
        return seen + self._noise[row]

    def _restore(self, row: int, goal: Goal, observation: Array) -> Array:
        with borrowed_scene(goal.task) as scene:
            self._task_of_row[row], self._noise[row] = goal.task, 0.0
            self._states[row], seen = restore(scene, observation)
        return seen

    def _simulate(self, rows: NDArray[np.intp], actions: Array) -> Array:
        """Step those of one task after another in one scene, as many scenes at once as threads."""
        indices_of: dict[str, list[int]] = {}
        for index, row in enumerate(rows.tolist()):
            indices_of.setdefault(self._task_of_row[row], []).append(index)
        share = ceil(len(rows) / self._num_threads)
        pieces = [(own[i : i + share], task) for task, own in indices_of.items() for i in range(0, len(own), share)]
        pieces.sort(key=lambda piece: -len(piece[0]))
        observation = np.empty((len(rows), OBSERVATION_SIZE))

        def simulate(indices: list[int], task: str) -> None:
            with borrowed_scene(task) as scene:
                for index in indices:
                    row = rows[index]
                    self._states[row] = scene.step(self._states[row], actions[index])
                    observation[index] = scene.observe(self._states[row]) + self._noise[row]

        if self._num_threads == 1 or len(pieces) == 1:
            for piece in pieces:
                simulate(*piece)
        else:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self._num_threads, "metaworld")
            for future in [self._threads.submit(simulate, *piece) for piece in pieces]:
                future.result()
        return observation

    def picture(self, row: int, size: int) -> NDArray[np.uint8]:
        """View from the front; it needs GL."""
        task = self._task_of_row[row]
        with borrowed_scene(task) as scene:
            if self._renderer is None or self._renderer[0] != task:
                if self._renderer is not None:
                    self._renderer[1].close()
                self._renderer = task, SceneRenderer(scene.model, size, camera=_camera())
            scene.load(self._states[row])
            return self._renderer[1].render(scene.model, scene.data, self._instructions[row])


def _made_up_entity(rng: np.random.Generator, task: str) -> NDArray[np.float64]:
    """The pose of one entity that is not in the scene, in its place among 91 zeros."""
    present = {entity.name for entity in TASKS[task].entities}
    absent = [entity for entity in ENTITIES if entity not in present]
    noise = np.zeros(OBSERVATION_SIZE)
    half_turn = rng.uniform(-np.pi, np.pi) / 2.0
    pose = [*rng.uniform(_NOISE_LOW, _NOISE_HIGH), np.cos(half_turn), 0.0, 0.0, np.sin(half_turn)]
    noise[pose_slice(absent[rng.integers(len(absent))])] = pose
    return noise


def _camera() -> mujoco.MjvCamera:
    """From the robot's right, over the table; the package's own cameras show it upside down or from behind the arm."""
    camera = mujoco.MjvCamera()
    camera.lookat[:] = 0.0, 0.65, 0.12
    camera.distance, camera.azimuth, camera.elevation = 1.45, 150.0, -32.0
    return camera
