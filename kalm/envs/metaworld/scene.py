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

from kalm.envs.metaworld.installation import import_metaworld
from kalm.envs.metaworld.layout import OBSERVATION_SIZE, POSE_SIZE, TARGET, pose_slice
from kalm.envs.metaworld.tasks import REWARD_FUNCTION_VERSION, TASKS, Entity, Task

_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)  # all that decides how the simulation goes on
_MOCAP_QUATERNION = (1.0, 0.0, 1.0, 0.0)  # the package holds the hand pointing down
_FULL_OPENING = 0.1  # metres between the fingers at which the package calls the gripper open


@dataclass(frozen=True)
class SceneState:
    """A scene at one moment.

    Attributes:
        physics: MuJoCo's integration state, shape (S,), where S depends on the scene.
        body_positions: Where bodies are mounted, shape (number of bodies, 3); a layout decides some of them.
        target: The target location, shape (3,).
    """

    physics: NDArray[np.float64]
    body_positions: NDArray[np.float64]
    target: NDArray[np.float64]


class Scene:
    """The scene of one task. Not for two threads at once.

    Attributes:
        task: What the scene is for.
        env: The package's environment, which owns ``model`` and ``data``.
    """

    def __init__(self, task: Task) -> None:
        """Compile the model, which takes a few tenths of a second.

        Raises:
            SimulatorError: If the simulator is not installed as it must be.
        """
        self.task = task
        self.env = _build(task)
        self.model: mujoco.MjModel = self.env.model
        self.data: mujoco.MjData = self.env.data
        self._bolt: Any = None
        if task.scene == "locked-door-open":
            from kalm.envs.metaworld.composed_scenes import bolt

            self._bolt = bolt
        self._mounted = self.model.body_pos.copy()
        self._loaded: SceneState | None = None
        self._readers = [_EntityReader(self.model, self.data, entity) for entity in task.entities]
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
        mujoco.mj_forward(self.model, self.data)
        return self._remember(np.array(self.env._target_pos, dtype=np.float64))

    def step(self, state: SceneState, action: NDArray[np.floating[Any]]) -> SceneState:
        """The state after one action, shape (4,), in [-1, 1]; 12.5 ms of simulated time."""
        self._load(state)
        env, data = self.env, self.data
        offset = np.asarray(action, dtype=np.float32)
        place = data.mocap_pos + np.clip(offset[:3], -1, 1) * env.action_scale
        data.mocap_pos = np.clip(place, env.mocap_low, env.mocap_high)
        data.mocap_quat = _MOCAP_QUATERNION
        data.ctrl[:] = offset[3], -offset[3]
        if self._bolt is not None:
            self._bolt(self.model, data)
        mujoco.mj_step(self.model, data, nstep=env.frame_skip)
        mujoco.mj_forward(self.model, data)
        return self._remember(state.target)

    def observe(self, state: SceneState) -> NDArray[np.float64]:
        """The 91 numbers of a state, see ``layout``."""
        self._load(state)
        return self.read(state.target)

    def read(self, target: NDArray[np.float64]) -> NDArray[np.float64]:
        """The 91 numbers of what the simulator holds now."""
        places = self.data.xpos
        observation = np.zeros(OBSERVATION_SIZE)
        observation[:3] = places[self._hand]
        apart = places[self._right] - places[self._left]
        observation[3] = min(float(np.sqrt(apart @ apart)) / _FULL_OPENING, 1.0)
        observation[TARGET] = target
        for reader in self._readers:
            reader.write(observation)
        return observation

    def show(self, state: SceneState) -> None:
        """Bring the simulator to a state, for rendering."""
        self._load(state)

    def start_anew(self, target: NDArray[np.float64]) -> None:
        """Bring the simulator to the beginning of some episode, with all bodies mounted as in the model's file."""
        self._loaded = None
        self.model.body_pos[:] = self._mounted
        mujoco.mj_setState(self.model, self.data, self._laid_out, _STATE)
        self.env._target_pos = target.copy()

    def remember(self, target: NDArray[np.float64]) -> SceneState:
        """What the simulator holds now, as a state."""
        mujoco.mj_forward(self.model, self.data)
        return self._remember(target)

    def _load(self, state: SceneState) -> None:
        if state is self._loaded:
            return
        self.model.body_pos[:] = state.body_positions
        mujoco.mj_setState(self.model, self.data, state.physics, _STATE)
        mujoco.mj_forward(self.model, self.data)
        # What has just been computed warm-starts the solver; a step must not depend on what was loaded before.
        mujoco.mj_setState(self.model, self.data, state.physics, _STATE)
        self._loaded = state

    def _remember(self, target: NDArray[np.float64]) -> SceneState:
        state = SceneState(self._physics(), self.model.body_pos.copy(), target)
        self._loaded = state
        return state

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


class _EntityReader:
    """Reads the pose of one entity off the simulator."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, entity: Entity) -> None:
        self._start = pose_slice(entity.name).start
        self._quaternions, self._body = data.xquat, model.body(entity.body).id
        self._positions, self._place = data.xpos, self._body
        if entity.site is not None:
            self._positions, self._place = data.site_xpos, model.site(entity.site).id
        elif entity.geom is not None:
            self._positions, self._place = data.geom_xpos, model.geom(entity.geom).id
        self._offset = np.array(entity.offset)

    def write(self, observation: NDArray[np.float64]) -> None:
        start = self._start
        observation[start : start + 3] = self._positions[self._place] + self._offset
        observation[start + 3 : start + POSE_SIZE] = self._quaternions[self._body]


def _build(task: Task) -> Any:
    """The package's environment of a task, made to draw layouts from its own generator."""
    if task.scene == task.name:
        from kalm.envs.metaworld.composed_scenes import COMPOSED_SCENES

        env_class = COMPOSED_SCENES[task.scene]
    else:
        env_class = import_metaworld("metaworld.env_dict").ALL_V3_ENVIRONMENTS[task.scene]
    env = env_class(reward_function_version=REWARD_FUNCTION_VERSION)
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env._set_task_called = True
    env._partially_observable = False
    return env
