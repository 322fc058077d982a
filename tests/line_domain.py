"""The chain's continuous counterpart: a walker on a line, whose action says how far and which way to go.

Goals, instructions and splits are the chain's; its five cells lie at -1, -1/2, 0, 1/2 and 1. A full step is one
and a half cells long, and the ends are walls, so that the best policy is plain again: towards the end with all might.

Shape letters: O = 1 (position), A = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Array, BoolArray, Goal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.envs.symmetry import Symmetry
from kalm.envs.vector_env import DomainVectorEnv
from tests.chain_domain import MAX_STEPS, CellGoal, ChainDomain

FULL_STEP = 0.75
REACH = 0.2  # from a cell's centre, the walker is in it


@dataclass(frozen=True)
class SpotGoal(CellGoal):
    """Be near the middle of one cell."""

    def success(
        self, observation: Array, previous_observation: Array | None = None, action: Array | None = None
    ) -> BoolArray:
        """The walker is in the goal's cell."""
        return np.abs(np.asarray(observation)[..., 0] - position(self)) <= REACH


class LineDomain(ChainDomain):
    """The line."""

    name: ClassVar[str] = "line"
    goal_class: ClassVar[type[Any]] = SpotGoal
    observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    plausibility_flags: ClassVar[tuple[str, ...]] = ("jumped",)

    def plausibility(self, observation: Array, action: Array, next_observation: Array) -> dict[str, BoolArray]:
        """``jumped``: not where the action leads."""
        return {"jumped": np.abs(next_observation - step(observation, action)).max(-1) > 1e-3}

    @property
    def symmetries(self) -> list[Symmetry]:
        """Actions are no names here."""
        return []

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> DomainVectorEnv:
        """All environments in one array."""
        return LineVectorEnv(self, num_envs)

    def collect(self, num_rollouts: int, seed: int, first: int = 0, mistake_rate: float = 0.2) -> Iterator[Rollout]:
        """Walk to a random end from anywhere, the wrong way now and then, with uneven steps."""
        goals = self.instructed_goals("train")
        for index in range(first, num_rollouts):
            rng = np.random.default_rng([seed, index])
            instructed = goals[rng.integers(len(goals))]
            at, actions = [start(rng, instructed.goal)], []
            while len(actions) < MAX_STEPS and not instructed.goal.success(at[-1]):
                towards = np.sign(position(instructed.goal) - at[-1]) * (-1 if rng.random() < mistake_rate else 1)
                actions.append((towards * rng.uniform(0.4, 1.0)).astype(np.float32))
                at.append(step(at[-1], actions[-1]))
            yield self.label_rollout(instructed, np.stack(at), np.stack(actions), Source.REAL)

    def draw(self, observation: Array, instruction: str = "", size: int = 256) -> NDArray[np.uint8]:
        """A white bar where the walker is."""
        picture = np.full((size, size, 3), 60, dtype=np.uint8)
        column = int((float(np.asarray(observation)[0]) + 1) / 2 * (size - 1))
        picture[:, max(0, column - 2) : column + 3] = 255
        picture[:4, : len(instruction)] = 120  # what is wanted, in a way
        return picture


class LineVectorEnv(DomainVectorEnv):
    """Many lines in one array."""

    def _lay_out(self, row: int, rng: np.random.Generator, goal: Goal, goal_split: str) -> Array:
        return start(rng, goal)

    def _simulate(self, rows: NDArray[np.intp], actions: Array) -> Array:
        return step(self._observation[rows], actions)


def position(goal: Goal) -> float:
    """Centre of the goal's cell."""
    assert isinstance(goal, CellGoal)
    return goal.cell / 2 - 1


def step(at: Array, action: Array) -> NDArray[np.float32]:
    """Where an action leads, shape (..., 1); the ends are walls."""
    return np.clip(at + FULL_STEP * np.clip(action, -1, 1), -1, 1).astype(np.float32)


def start(rng: np.random.Generator, goal: Goal) -> NDArray[np.float32]:
    """Anywhere outside of the goal's cell, shape (1,)."""
    while True:
        at = rng.uniform(-1, 1, size=1).astype(np.float32)
        if abs(float(at[0]) - position(goal)) > REACH:
            return at
