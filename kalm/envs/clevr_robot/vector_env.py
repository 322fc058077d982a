"""The CLEVR-Robot world in MuJoCo: five balls on a walled table, pushed one at a time, in many episodes at once.

States are plain arrays and stepping is a function of them, so one environment and a thousand run the same code:
``mujoco.rollout`` steps a batch of states on a pool of C++ threads. Numbers depend on neither the batch nor the pool.

The physics is that of google-research/clevr_robot_env; two things are arranged otherwise without changing a number.
Contacts are listed pair by pair, which spares the search for them, and a whole push is one call.

Shapes: B batch, S numbers in one simulator state.
"""

from __future__ import annotations

from typing import Any, ClassVar

import mujoco
import mujoco.rollout
import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Array, Goal
from kalm.envs.base import Domain
from kalm.envs.clevr_robot.layout import (
    BALL_RADIUS,
    COLORS,
    NUM_BALLS,
    OBSERVATION_SIZE,
    PUSH_DIRECTIONS,
    RGB,
    WALLS,
    sample_layout,
)
from kalm.envs.scene_renderer import SceneRenderer
from kalm.envs.vector_env import DomainVectorEnv, usable_cores

FloatArray = NDArray[np.float64]

NUM_SUB_STEPS = 40  # simulator steps of 0.01 s in one push
PUSH_OFFSET = 0.15  # the pusher starts this far behind the ball, times the push direction
_BALL_HEIGHT = -0.195
_FREE_JOINT_SIZE = 7  # position and quaternion of one ball
_FREE_JOINT_SPEEDS = 6

# Where the parts of a state (time, positions, velocities) begin.
_POSITIONS = 1
_PUSHER_POSITION = _POSITIONS + NUM_BALLS * _FREE_JOINT_SIZE
_VELOCITIES = _PUSHER_POSITION + 2
_PUSHER_VELOCITY = _VELOCITIES + NUM_BALLS * _FREE_JOINT_SPEEDS
# Columns of a state that hold x and y of the five balls, in the order of an observation.
_BALL_COLUMNS = (_POSITIONS + _FREE_JOINT_SIZE * np.arange(NUM_BALLS)[:, None] + np.arange(2)).ravel()

# For each action: the columns of the ball that it pushes, and the control signal of every sub-step.
_PUSHED_COLUMNS = np.repeat(_BALL_COLUMNS.reshape(NUM_BALLS, 2), len(PUSH_DIRECTIONS), axis=0)
_CONTROL = np.tile(PUSH_DIRECTIONS[:, None], (NUM_BALLS, NUM_SUB_STEPS, 1))


def world_xml() -> str:
    """The world as MJCF.

    Geoms never collide by their own settings: every pair that can touch is listed under ``contact`` with the values
    that MuJoCo would mix from the two geoms (both the defaults below). The pusher passes through walls and table.
    """
    walls = "".join(
        f'<geom name="{name}" type="plane" pos="{pos}" euler="{euler}" size="2 2 0.1" rgba="1 1 1 0"/>'
        for name, pos, euler in WALLS
    )
    balls = "".join(
        f'<body name="{color}" pos="0 0 {_BALL_HEIGHT}"><joint type="free" damping="0.75" limited="false"/>'
        f'<geom name="{color}" type="sphere" size="{BALL_RADIUS}" density="1" rgba="{r:g} {g:g} {b:g} 1"/></body>'
        for color, (r, g, b) in RGB.items()
    )
    fixed = ["table", *(name for name, _, _ in WALLS)]
    touching = [(surface, color) for surface in fixed for color in COLORS]
    touching += [(first, second) for i, first in enumerate(COLORS) for second in COLORS[i + 1 :]]
    touching += [(color, "pusher") for color in COLORS]
    pairs = "".join(
        f'<pair geom1="{a}" geom2="{b}" condim="3" margin="0.002" friction=".8 .8 .1 .1 .1"/>' for a, b in touching
    )
    return f"""
<mujoco model="clevr_robot">
  <compiler inertiafromgeom="true" angle="radian"/>
  <option timestep="0.01" gravity="0 0 -9.81" iterations="20" integrator="Euler"/>
  <visual><global offwidth="1024" offheight="1024"/></visual>
  <default>
    <joint armature="0.04" damping="1" limited="true"/>
    <geom friction=".8 .1 .1" density="300" margin="0.002" condim="3" contype="0" conaffinity="0"/>
  </default>
  <worldbody>
    <light pos="0 0.2 3" dir="0 0 -1" diffuse=".35 .35 .35" ambient=".3 .3 .3"/>
    <camera name="top" pos="0 0.2 1.55" fovy="45"/>
    <geom name="table" type="plane" pos="0 0.5 -0.325" size="1 1 0.1" rgba=".82 .82 .80 1"/>
    {walls}{balls}
    <body name="pusher" pos="0 0 -0.2">
      <joint name="push_x" type="slide" axis="1 0 0" range="-10.3 10.3" damping="0.5"/>
      <joint name="push_y" type="slide" axis="0 1 0" range="-10.3 10.3" damping="0.5"/>
      <geom name="pusher" type="sphere" size="0.05" density="0.5" rgba=".25 .25 .25 1"/>
    </body>
  </worldbody>
  <contact>{pairs}</contact>
  <actuator>
    <motor joint="push_x" ctrllimited="true" ctrlrange="-2 2"/>
    <motor joint="push_y" ctrllimited="true" ctrlrange="-2 2"/>
  </actuator>
</mujoco>"""


class ClevrRobotPhysics:
    """Steps batches of simulator states.

    Args:
        num_threads: Threads to step with; None takes all cores that this process may use.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        """Compile the world and start the threads."""
        num_threads = usable_cores() if num_threads is None else num_threads
        if num_threads < 1:
            raise ValueError(f"num_threads is {num_threads}; it must be 1 or more, or None for all cores")
        self.model = mujoco.MjModel.from_xml_string(world_xml())
        self.state_size = mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        self._data = [mujoco.MjData(self.model) for _ in range(num_threads)]
        # Zero threads means the calling one: a pool of one would only add a hand-over.
        self._pool = mujoco.rollout.Rollout(nthread=num_threads if num_threads > 1 else 0)
        self._rest = np.zeros(self.state_size)
        self._rest[_POSITIONS:_VELOCITIES] = self.model.qpos0

    def __reduce__(self) -> tuple[type, tuple[int]]:
        """A copy is built anew: states live outside, and threads belong to one process."""
        return type(self), (len(self._data),)

    def initial_state(self, observation: NDArray[Any]) -> FloatArray:
        """States at rest, shape (B, S), with the balls where observations of shape (B, 10) say."""
        state = np.tile(self._rest, (len(observation), 1))
        state[:, _BALL_COLUMNS] = observation
        return state

    def observation(self, state: FloatArray) -> FloatArray:
        """Ball centres, shape (..., 10), of states, shape (..., S)."""
        return state[..., _BALL_COLUMNS]

    def shown(self, state: FloatArray) -> mujoco.MjData:
        """What MuJoCo makes of one state, shape (S,), for rendering."""
        data = mujoco.MjData(self.model)
        data.qpos[:] = state[_POSITIONS:_VELOCITIES]
        mujoco.mj_forward(self.model, data)
        return data

    def step(self, state: FloatArray, action: NDArray[Any]) -> FloatArray:
        """Carry out one push in each state.

        The pusher is put behind its ball at rest and driven for ``NUM_SUB_STEPS`` steps; time and solver warm starts
        begin anew, as in the original, so that a state says all there is to know.

        Args:
            state: Shape (B, S); not changed.
            action: Ball times 8 plus push direction, shape (B,), in [0, 40).
        """
        num = len(state)
        start = state.copy()
        center = state[np.arange(num)[:, None], _PUSHED_COLUMNS[action]]
        start[:, 0] = 0.0
        start[:, _PUSHER_POSITION:_VELOCITIES] = center - PUSH_OFFSET * _CONTROL[action, 0]
        start[:, _PUSHER_VELOCITY:] = 0.0
        passed = np.empty((num, NUM_SUB_STEPS, self.state_size))
        # Checks are skipped because all shapes are ours; they would double the cost of stepping one environment.
        self._pool.rollout(
            [self.model] * num,
            self._data,
            start,
            _CONTROL[action],
            skip_checks=True,
            nstep=NUM_SUB_STEPS,
            control_spec=int(mujoco.mjtState.mjSTATE_CTRL),
            state=passed,
        )
        return passed[:, -1].copy()


class ClevrRobotVectorEnv(DomainVectorEnv):
    """B episodes in one simulator."""

    _of_this_process: ClassVar[tuple[str, ...]] = ("_renderer",)

    def __init__(self, domain: Domain, num_envs: int, num_threads: int | None = None) -> None:
        """Build one simulator for all environments; GL is not touched before the first picture."""
        super().__init__(domain, num_envs)
        self._physics = ClevrRobotPhysics(num_threads)
        self._state = self._physics.initial_state(np.zeros((num_envs, OBSERVATION_SIZE)))
        self._renderer: SceneRenderer | None = None

    def try_actions(self, rows: NDArray[np.int64], actions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Observations, shape (N, C, 10), that C actions, shape (N, C), would lead to in N rows; nothing changes."""
        state = np.repeat(self._state[rows], actions.shape[1], axis=0)
        after = self._physics.observation(self._physics.step(state, actions.ravel()))
        return after.reshape(*actions.shape, OBSERVATION_SIZE)

    def _lay_out(self, row: int, rng: np.random.Generator, goal: Goal, goal_split: str) -> Array:
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
            camera = mujoco.MjvCamera()
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._physics.model.camera("top").id
            self._renderer = SceneRenderer(self._physics.model, size, camera)
        return self._renderer.render(
            self._physics.model, self._physics.shown(self._state[row]), self._instructions[row]
        )

    def close_extras(self, **kwargs: object) -> None:
        """Free the GL context, if one was made."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
