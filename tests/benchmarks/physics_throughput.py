"""Pushes a second of the CLEVR-Robot simulator, against a loop in the manner of the original environment.

    python tests/benchmarks/physics_throughput.py [--repeats 5] [--clock cpu]

The original steps dm_control's ``Physics`` once a sub-step: from Python, in two halves, with a look at MuJoCo's
warnings around each. The loop here does the same with the plain bindings, on a world whose contacts are found by the
geoms' own bits. All variants carry out the recorded pushes of the reference file, and all must end where it says.
Repeats alternate and medians are compared, because machines drift; ``--clock cpu`` counts processor time, for machines
that are shared (the figure of several threads needs ``wall``).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import mujoco
import numpy as np
from numpy.typing import NDArray

from kalm.envs.clevr_robot.layout import COLORS, NUM_BALLS, PUSH_DIRECTIONS
from kalm.envs.clevr_robot.vector_env import NUM_SUB_STEPS, PUSH_OFFSET, ClevrRobotPhysics, world_xml

REFERENCE = Path(__file__).parents[1] / "envs" / "reference" / "clevr_robot.npz"
TOLERANCE = 1e-9


def original_world_xml() -> str:
    """The world with contacts found by contact bits, as the original has it, instead of by listed pairs."""
    root = ElementTree.fromstring(world_xml())
    contact = root.find("contact")
    assert contact is not None
    root.remove(contact)
    for geom in root.iter("geom"):
        name = geom.get("name")
        geom.set("contype", "1")
        geom.set("conaffinity", "1" if name in (*COLORS, "table") else "0")
    return ElementTree.tostring(root, encoding="unicode")


class SubStepLoop:
    """One simulator, stepped from Python sub-step by sub-step."""

    def __init__(self) -> None:
        """Compile the world."""
        self.model = mujoco.MjModel.from_xml_string(original_world_xml())
        self.data = mujoco.MjData(self.model)
        self.columns = [7 * ball + axis for ball in range(NUM_BALLS) for axis in range(2)]

    def reset(self, observation: NDArray[np.float64]) -> None:
        """Put the balls where an observation says."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[self.columns] = observation

    def push(self, action: int) -> NDArray[np.float64]:
        """Carry out one push."""
        model, data = self.model, self.data
        ball, direction = divmod(action, len(PUSH_DIRECTIONS))
        data.qpos[35:] = data.qpos[7 * ball : 7 * ball + 2] - PUSH_OFFSET * PUSH_DIRECTIONS[direction]
        data.qvel[30:] = 0
        data.time = 0
        data.qacc_warmstart[:] = 0
        mujoco.mj_forward(model, data)
        data.ctrl[:] = PUSH_DIRECTIONS[direction]
        for _ in range(NUM_SUB_STEPS):
            warnings_before = data.warning.number.copy()
            mujoco.mj_step2(model, data)
            mujoco.mj_step1(model, data)
            if (data.warning.number > warnings_before).any():
                raise RuntimeError("the simulation is unstable")
        return data.qpos[self.columns]


def run_loop(observations: NDArray[np.float64], actions: NDArray[np.int64]) -> NDArray[np.float64]:
    """The recorded pushes by the loop; returns the observations after each."""
    simulator = SubStepLoop()
    results = np.empty_like(observations[:, 1:])
    for index, rollout in enumerate(actions):
        simulator.reset(observations[index, 0])
        for step, action in enumerate(rollout):
            results[index, step] = simulator.push(int(action))
    return results


def run_single(observations: NDArray[np.float64], actions: NDArray[np.int64]) -> NDArray[np.float64]:
    """The recorded pushes, one environment at a time, on one thread."""
    physics = ClevrRobotPhysics(num_threads=1)
    results = np.empty_like(observations[:, 1:])
    for index, rollout in enumerate(actions):
        state = physics.initial_state(observations[index, :1])
        for step, action in enumerate(rollout):
            state = physics.step(state, np.array([action]))
            results[index, step] = physics.observation(state)[0]
    return results


def run_batch(observations: NDArray[np.float64], actions: NDArray[np.int64], num_threads: int) -> NDArray[np.float64]:
    """The recorded pushes, all environments at once."""
    physics = ClevrRobotPhysics(num_threads)
    results = np.empty_like(observations[:, 1:])
    state = physics.initial_state(observations[:, 0])
    for step in range(actions.shape[1]):
        state = physics.step(state, actions[:, step])
        results[:, step] = physics.observation(state)
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    with np.load(REFERENCE) as reference:
        observations, actions = reference["rollout_observation"], reference["rollout_action"]
    runs: dict[str, Callable[[], NDArray[np.float64]]] = {
        "sub-steps from Python": lambda: run_loop(observations, actions),
        "one environment": lambda: run_single(observations, actions),
        "40 environments, 1 thread": lambda: run_batch(observations, actions, 1),
        f"40 environments, {options.threads} threads": lambda: run_batch(observations, actions, options.threads),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            began = clock()
            results = run()
            rates[name].append(actions.size / (clock() - began))
            error = np.abs(results - observations[:, 1:]).max()
            assert error < TOLERANCE, f"{name} strays from the reference by {error}"
    medians = {name: statistics.median(values) for name, values in rates.items()}
    base = medians["sub-steps from Python"]
    for name, median in medians.items():
        sys.stdout.write(f"{name:28} {median:6.0f} pushes/s, {median / base:.2f} times the loop\n")


if __name__ == "__main__":
    main()
