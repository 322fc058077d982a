"""One of Meta-World's scenes as a function of states: lay out, step, observe.

The package's environment lays out the scene and holds the model; stepping and observing go past its ``step``, which
spends four fifths of its time on rewards and look-ups by name that kalm's own rules do not need. The simulation is the
same to the last bit. A state is a few hundred numbers apart from the scene, so that one scene, which takes a while to
build, serves any number of episodes, and any thread that holds it can go on with any of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from kalm.envs.metaworld.layout import OBSERVATION_SIZE, POSE_SIZE, TARGET, pose_slice
from kalm.envs.metaworld.package import bolt, build_scene
from kalm.envs.metaworld.tasks import TASKS, Entity, Task

_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)  # all that decides how the simulation goes on
_MOCAP_QUATERNION = (1.0, 0.0, 1.0, 0.0)  # the package holds the hand pointing down
_FULL_OPENING = 0.1  # metres between the fingers at which the package calls the gripper open


@dataclass(frozen=True)
class SceneState:
    """A scene at one moment."""

    physics: NDArray[np.float64]  # MuJoCo's integration state, whose length depends on the scene
    body_positions: NDArray[np.float64]  # where bodies are mounted, shape (bodies, 3); a layout decides some
    target: NDArray[np.float64]  # location, shape (3,)


class Scene:
    """The scene of one task. Not for two threads at once.

    Attributes:
        task: What the scene is for.
        env: The package's environment, which owns ``model`` and ``data``.
    """

    def __init__(self, task: Task) -> None:
        """Compile the model, which takes a few tenths of a second."""
        self.task = task
        self.env = build_scene(task)
        self.model: mujoco.MjModel = self.env.model
        self.data: mujoco.MjData = self.env.data
        self._mounted = self.model.body_pos.copy()
        self._loaded: SceneState | None = None
        self._places = [(pose_slice(entity.name).start, *self._place(entity)) for entity in task.entities]
        self._hand, self._right, self._left = (self.model.body(n).id for n in ("hand", "rightclaw", "leftclaw"))
        self._bring_hand_to_rest()
        self._laid_out = self.lay_out(np.random.default_rng(0)).physics

    def _bring_hand_to_rest(self) -> None:
        """Simulate the arm's way to its place of rest once: the package would do so twice an episode."""
        mujoco.mj_resetData(self.model, self.data)
        self.env._reset_hand()
        at_rest = self._physics()

        def restore() -> None:
            mujoco.mj_setState(self.model, self.data, at_rest, _STATE)
            mujoco.mj_forward(self.model, self.data)

        self.env._reset_hand = restore

    def lay_out(self, rng: np.random.Generator) -> SceneState:
        """A random layout, as the package draws it; ``rng`` alone decides it."""
        self._loaded = None
        self.model.body_pos[:] = self._mounted
        mujoco.mj_resetData(self.model, self.data)
        self.env.np_random = rng
        self.env.curr_path_length = 0
        self.env.reset_model()
        return self.remember(np.array(self.env._target_pos, dtype=np.float64))

    def step(self, state: SceneState, action: NDArray[np.floating[Any]]) -> SceneState:
        """The state after one action, shape (4,), in [-1, 1]; 12.5 ms of simulated time."""
        self.load(state)
        env, data = self.env, self.data
        offset = np.asarray(action, dtype=np.float32)
        place = data.mocap_pos + np.clip(offset[:3], -1, 1) * env.action_scale
        data.mocap_pos = np.clip(place, env.mocap_low, env.mocap_high)
        data.mocap_quat = _MOCAP_QUATERNION
        data.ctrl[:] = offset[3], -offset[3]
        if self.task.name == "locked-door-open":
            bolt(self.model, data)
        mujoco.mj_step(self.model, data, nstep=env.frame_skip)
        return self.remember(state.target)

    def observe(self, state: SceneState) -> NDArray[np.float64]:
        """The 91 numbers of a state, see ``layout``."""
        self.load(state)
        return self.read(state.target)

    def read(self, target: NDArray[np.float64]) -> NDArray[np.float64]:
        """The 91 numbers of what the simulator holds now."""
        places = self.data.xpos
        observation = np.zeros(OBSERVATION_SIZE)
        observation[:3] = places[self._hand]
        apart = places[self._right] - places[self._left]
        observation[3] = min(float(np.sqrt(apart @ apart)) / _FULL_OPENING, 1.0)
        observation[TARGET] = target
        for start, positions, number, body, offset in self._places:
            observation[start : start + 3] = positions[number] + offset
            observation[start + 3 : start + POSE_SIZE] = self.data.xquat[body]
        return observation

    def _place(self, entity: Entity) -> tuple[NDArray[np.float64], int, int, NDArray[np.float64]]:
        """Where the simulator keeps an entity: positions, its number among them, its body, what its offset is."""
        body, offset = self.model.body(entity.body).id, np.array(entity.offset)
        if entity.site is not None:
            return self.data.site_xpos, self.model.site(entity.site).id, body, offset
        if entity.geom is not None:
            return self.data.geom_xpos, self.model.geom(entity.geom).id, body, offset
        return self.data.xpos, body, body, offset

    def start_anew(self, target: NDArray[np.float64]) -> None:
        """Bring the simulator to the beginning of some episode, with all bodies mounted as in the model's file."""
        self._loaded = None
        self.model.body_pos[:] = self._mounted
        mujoco.mj_setState(self.model, self.data, self._laid_out, _STATE)
        self.env._target_pos = target.copy()

    def remember(self, target: NDArray[np.float64]) -> SceneState:
        """What the simulator holds now, as a state."""
        mujoco.mj_forward(self.model, self.data)
        self._loaded = SceneState(self._physics(), self.model.body_pos.copy(), target)
        return self._loaded

    def load(self, state: SceneState) -> None:
        """Bring the simulator to a state."""
        if state is self._loaded:
            return
        self.model.body_pos[:] = state.body_positions
        mujoco.mj_setState(self.model, self.data, state.physics, _STATE)
        mujoco.mj_forward(self.model, self.data)
        # What has just been computed warm-starts the solver; a step must not depend on what was loaded before.
        mujoco.mj_setState(self.model, self.data, state.physics, _STATE)
        self._loaded = state

    def _physics(self) -> NDArray[np.float64]:
        physics = np.empty(mujoco.mj_stateSize(self.model, _STATE))
        mujoco.mj_getState(self.model, self.data, physics, _STATE)
        return physics


_idle: dict[str, list[Scene]] = {}
_lock = threading.Lock()


@contextmanager
def borrowed_scene(task: str) -> Iterator[Scene]:
    """A scene of a task, built once in a process and lent to one thread at a time; another one if all are lent out."""
    with _lock:
        waiting = _idle.setdefault(task, [])
        scene = waiting.pop() if waiting else None
    if scene is None:
        scene = Scene(TASKS[task])
    try:
        yield scene
    finally:
        with _lock:
            _idle[task].append(scene)
