"""The chain's continuous counterpart: a walker on a line, whose action says how far and which way to go.

Goals, instructions and splits are the chain's; its five cells lie at -1, -1/2, 0, 1/2 and 1. A full step is one
and a half cells long, and the ends are walls, so that the best policy is plain again: towards the end with all might.

Shape letters: O = 1 (position), A = 1, B environments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.envs.base import BoolArray, FloatArray, Goal
from kalm.envs.symmetry import Relabelling
from tests.chain_domain import MAX_STEPS, CellGoal, ChainDomain

FULL_STEP = 0.75
REACH = 0.2  # from a cell's centre, the walker is in it


class LineDomain(ChainDomain):
    """The line."""

    name: ClassVar[str] = "line"
    env_id: ClassVar[str] = "kalm-tests/Line-v0"
    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)  # type: ignore[assignment]
    plausibility_flags: ClassVar[tuple[str, ...]] = ("jumped",)

    def success(
        self,
        goal: Goal,
        observation: FloatArray,
        previous_observation: FloatArray | None = None,
        action: NDArray[Any] | None = None,
    ) -> BoolArray:
        """The walker is in the goal's cell."""
        return np.abs(np.asarray(observation)[..., 0] - position(goal)) <= REACH

    def plausibility(
        self, observation: FloatArray, action: NDArray[Any], next_observation: FloatArray
    ) -> dict[str, BoolArray]:
        """``jumped``: not where the action leads."""
        return {"jumped": np.abs(next_observation - step(observation, action)).max(-1) > 1e-3}

    @property
    def relabellings(self) -> list[Relabelling]:
        """Actions are no names here."""
        return []

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> gym.vector.VectorEnv:
        """All environments in one array."""
        return LineVectorEnv(num_envs)

    def collect(self, num_rollouts: int, seed: int, first: int = 0, mistake_rate: float = 0.2) -> Iterator[Rollout]:
        """Walk to a random end from anywhere, the wrong way now and then, with uneven steps."""
        goals = self.instructed_goals("train")
        for index in range(first, num_rollouts):
            rng = np.random.default_rng([seed, index])
            instructed = goals[rng.integers(len(goals))]
            at, actions = [start(rng, instructed.goal)], []
            while len(actions) < MAX_STEPS and not self.success(instructed.goal, at[-1]):
                towards = np.sign(position(instructed.goal) - at[-1]) * (-1 if rng.random() < mistake_rate else 1)
                actions.append((towards * rng.uniform(0.4, 1.0)).astype(np.float32))
                at.append(step(at[-1], actions[-1]))
            yield self.label_rollout(instructed, np.stack(at), np.stack(actions), Source.REAL)

    def draw(self, observation: FloatArray, instruction: str = "", size: int = 256) -> NDArray[np.uint8]:
        """A white bar where the walker is."""
        picture = np.full((size, size, 3), 60, dtype=np.uint8)
        column = int((float(np.asarray(observation)[0]) + 1) / 2 * (size - 1))
        picture[:, max(0, column - 2) : column + 3] = 255
        return picture


class LineVectorEnv(gym.vector.VectorEnv[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]):
    """Many lines in one array; an episode depends on its own seed, goal and actions only."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}  # type: ignore[misc]

    def __init__(self, num_envs: int) -> None:
        """Make ``num_envs`` lines."""
        self.domain = LineDomain()
        self.num_envs = num_envs
        self.single_observation_space = self.domain.observation_space
        self.single_action_space = self.domain.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        default = self.domain.instructed_goals("train")[0]
        self._goals: list[Goal] = [default.goal] * num_envs
        self._instructions = [default.instruction] * num_envs
        self._at = np.zeros((num_envs, 1), dtype=np.float32)
        self._num_steps = np.zeros(num_envs, dtype=np.int64)

    def reset(  # type: ignore[override]
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin episodes, all or those that ``options["reset_mask"]`` marks."""
        options = options or {}
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        for i in np.flatnonzero(options.get("reset_mask", np.ones(self.num_envs, dtype=np.bool_))):
            self._goals[i] = options["goals"][i] if "goals" in options else self._goals[i]
            self._instructions[i] = options["instructions"][i] if "instructions" in options else self._instructions[i]
            rng = np.random.default_rng(None if seeds is None else seeds[i])
            self._at[i] = options["observations"][i] if "observations" in options else start(rng, self._goals[i])
            self._num_steps[i] = 0
        return self._at.copy(), self._infos(np.zeros(self.num_envs, dtype=np.bool_))

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Walk on every line."""
        self._at = step(self._at, np.asarray(actions))
        self._num_steps += 1
        is_success = np.array([self.domain.success(g, x) for g, x in zip(self._goals, self._at, strict=True)])
        truncated = ~is_success & (self._num_steps >= MAX_STEPS)
        return self._at.copy(), is_success.astype(np.float64), is_success, truncated, self._infos(is_success)

    def _infos(self, is_success: NDArray[np.bool_]) -> dict[str, Any]:
        return {"is_success": is_success, "instruction": np.array(self._instructions, dtype=object)}


def position(goal: Goal) -> float:
    """Centre of the goal's cell."""
    assert isinstance(goal, CellGoal)
    return goal.cell / 2 - 1


def step(at: FloatArray, action: NDArray[Any]) -> NDArray[np.float32]:
    """Where an action leads, shape (..., 1); the ends are walls."""
    return np.clip(at + FULL_STEP * np.clip(action, -1, 1), -1, 1).astype(np.float32)


def start(rng: np.random.Generator, goal: Goal) -> NDArray[np.float32]:
    """Anywhere outside of the goal's cell, shape (1,)."""
    while True:
        at = rng.uniform(-1, 1, size=1).astype(np.float32)
        if abs(float(at[0]) - position(goal)) > REACH:
            return at
