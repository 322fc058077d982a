"""The CLEVR-Robot world in MuJoCo: five balls on a walled table, pushed one at a time.

States are plain arrays and stepping is a function of them, so one environment and a thousand run the same code:
``mujoco.rollout`` steps a batch of states on a pool of C++ threads. Numbers depend on neither the batch nor the pool.

The physics is that of google-research/clevr_robot_env; two things are arranged otherwise without changing a number.
Contacts are listed pair by pair, which spares the search for them, and a whole push is one call.
"""

from __future__ import annotations

from typing import Any

import mujoco
import mujoco.rollout
import numpy as np
from numpy.typing import NDArray

from kalm.envs.clevr_robot.layout import (
    BALL_RADIUS,
    COLORS,
    NUM_BALLS,
    PUSH_DIRECTIONS,
    RGB,
    WALLS,
)
from kalm.envs.vector_env import usable_cores

# Shapes: B batch, S numbers in one simulator state.
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
        f'<geom name="{color}" type="sphere" size="{BALL_RADIUS}" density="1" rgba="{_rgba(color)}"/></body>'
        for color in COLORS
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


def _rgba(color: str) -> str:
    return " ".join(f"{part:g}" for part in (*RGB[color], 1.0))


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
        """States at rest with the balls where the observations say.

        Args:
            observation: Ball centres, shape (B, 10).

        Returns:
            States, shape (B, S).
        """
        state = np.tile(self._rest, (len(observation), 1))
        state[:, _BALL_COLUMNS] = observation
        return state

    def observation(self, state: FloatArray) -> FloatArray:
        """Ball centres, shape (..., 10), of states, shape (..., S)."""
        return state[..., _BALL_COLUMNS]

    def positions(self, state: FloatArray) -> FloatArray:
        """MuJoCo's ``qpos``, shape (..., 37), of states, shape (..., S), as rendering needs it."""
        return state[..., _POSITIONS:_VELOCITIES]

    def step(self, state: FloatArray, action: NDArray[Any]) -> FloatArray:
        """Carry out one push in each state.

        The pusher is put behind its ball at rest and driven for ``NUM_SUB_STEPS`` steps; time and solver warm starts
        begin anew, as in the original, so that a state says all there is to know.

        Args:
            state: Shape (B, S); not changed.
            action: Ball times 8 plus push direction, shape (B,), in [0, 40).

        Returns:
            States after the push, shape (B, S).
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
