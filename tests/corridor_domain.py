"""The chain as a grid that one agent walks on: a corridor one tile wide, each tile with a code of its own.

Goals, instructions, splits and what the two actions do are the chain's, so that the best policy is plain again.

Shape letters: W = 5, H = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Array, BoolArray, Goal
from kalm.core.rollout import Rollout
from kalm.envs.agent_grid import AgentGrid
from kalm.envs.symmetry import Symmetry
from kalm.envs.vector_env import DomainVectorEnv
from tests.chain_domain import NUM_CELLS, CellGoal, ChainDomain, start_cell, step


@dataclass(frozen=True)
class TileGoal(CellGoal):
    """Be on one tile."""

    def success(
        self, observation: Array, previous_observation: Array | None = None, action: Array | None = None
    ) -> BoolArray:
        """The agent is on the goal's tile."""
        return np.asarray(cell_of(observation) == self.cell)


class CorridorDomain(ChainDomain):
    """The corridor."""

    name: ClassVar[str] = "corridor"
    goal_class: ClassVar[type[Any]] = TileGoal
    observation_space = gym.spaces.Box(0, 255, (NUM_CELLS, 1, 2), np.uint8)
    plausibility_flags: ClassVar[tuple[str, ...]] = ("jumped",)

    def plausibility(self, observation: Array, action: Array, next_observation: Array) -> dict[str, BoolArray]:
        """``jumped``: not where the action leads."""
        return {"jumped": np.asarray(cell_of(next_observation) != step(cell_of(observation), action))}

    @property
    def symmetries(self) -> list[Symmetry]:
        """Symmetries are of vectors."""
        return []

    @property
    def agent_grid(self) -> AgentGrid:
        """Nothing is asked about goals."""
        return AgentGrid(NUM_CELLS + 1, 0, NUM_CELLS, {}, lambda goal: {})

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> DomainVectorEnv:
        """All environments in one array."""
        return CorridorVectorEnv(self, num_envs)

    def collect(self, num_rollouts: int, seed: int, first: int = 0, mistake_rate: float = 0.3) -> Iterator[Rollout]:
        """The chain's walks."""
        for rollout in ChainDomain().collect(num_rollouts, seed, first, mistake_rate):
            yield replace(rollout, observations=state_of(rollout.observations.argmax(-1)), violations={"jumped": 0})

    def draw(self, observation: Array, instruction: str = "", size: int = 256) -> NDArray[np.uint8]:
        """As the chain is drawn."""
        return super().draw(np.eye(NUM_CELLS)[cell_of(observation)], instruction, size)


class CorridorVectorEnv(DomainVectorEnv):
    """Many corridors in one array."""

    def _lay_out(self, row: int, rng: np.random.Generator, goal: Goal, goal_split: str) -> Array:
        return state_of(np.array(start_cell(rng, goal)))

    def _simulate(self, rows: NDArray[np.intp], actions: Array) -> Array:
        return state_of(step(cell_of(self._observation[rows]), actions))


def cell_of(states: Array) -> NDArray[np.int64]:
    """Where the agent is in states, (..., W, H, 2)."""
    return np.asarray(states)[..., 0, 1].argmax(-1)


def state_of(cell: NDArray[Any]) -> NDArray[np.uint8]:
    """States, (..., W, H, 2), in which the agent is in cells, (...), looks along the corridor and carries nothing."""
    states = np.zeros((*cell.shape, NUM_CELLS, 1, 2), dtype=np.uint8)
    states[..., 0, 0] = np.arange(1, NUM_CELLS + 1)
    states[..., 0, 1] = np.arange(NUM_CELLS) == cell[..., None]
    return states
