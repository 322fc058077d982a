"""A world small enough to reason about: five cells in a row, two actions, a goal cell, the whole contract.

A goal names a cell. Training and rephrased goals are the two ends; easy goals are the cells next to the middle; the
hard goal is the middle itself. The best policy is plain (walk towards the goal), every return can be worked out by
hand, and an episode takes microseconds, so learning tests use it.

Shape letters: O = 5 (one-hot cell).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.goal import Array, BoolArray, FloatArray, Goal, InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.envs.base import Domain
from kalm.envs.symmetry import Symmetry
from kalm.envs.vector_env import DomainVectorEnv

NUM_CELLS = 5
LEFT, RIGHT = 0, 1
MAX_STEPS = 12

CELL_NAMES = ("left end", "left middle", "centre", "right middle", "right end")
PATTERNS = {
    "train": ("go to the {}", "walk to the {}", "reach the {}"),
    "rephrase": ("I would like you at the {}", "please be at the {} soon"),
    "easy": ("take a step to the {}", "just step to the {}"),
    "hard": ("come back to the {}",),
}
CELLS = {"train": (0, 4), "rephrase": (0, 4), "easy": (1, 3), "hard": (2,)}


@dataclass(frozen=True)
class CellGoal(Goal):
    """Be in one cell."""

    cell: int
    max_steps: ClassVar[int] = MAX_STEPS

    @property
    def task(self) -> str:
        """One task a cell."""
        return CELL_NAMES[self.cell].replace(" ", "_")

    def success(
        self, observation: Array, previous_observation: Array | None = None, action: Array | None = None
    ) -> BoolArray:
        """The most likely cell is the goal's; the default reward is 1 for arriving."""
        return np.asarray(np.asarray(observation).argmax(-1) == self.cell)

    def distance(self, observation: Array) -> FloatArray:
        """Steps to the goal's cell."""
        return np.abs(np.asarray(observation).argmax(-1) - self.cell).astype(np.float64)

    def explained_by(self, text: str) -> bool:
        """The text names the goal's cell."""
        return CELL_NAMES[self.cell] in text

    def to_json(self) -> dict[str, Any]:
        """The form that ``ChainDomain.goal_from_json`` reads."""
        return {"type": "cell", "cell": self.cell}


class ChainDomain(Domain):
    """The five-cell chain."""

    name: ClassVar[str] = "chain"
    goal_splits: ClassVar[tuple[str, ...]] = ("train", "rephrase", "easy", "hard")
    goal_class: ClassVar[type[Any]] = CellGoal
    observation_space: Any = gym.spaces.Box(0.0, 1.0, (NUM_CELLS,), np.float32)
    action_space: Any = gym.spaces.Discrete(2)
    plausibility_flags: ClassVar[tuple[str, ...]] = ("jumped", "nowhere")

    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:
        """Every cell of the split in every wording of the split."""
        return [
            InstructedGoal(self.goal_class(cell), pattern.format(CELL_NAMES[cell]), goal_split)  # type: ignore[call-arg]
            for cell in CELLS[goal_split]
            for pattern in PATTERNS[goal_split]
        ]

    def goal_from_json(self, data: Mapping[str, Any]) -> Goal:
        """Rebuild a cell goal."""
        if data.get("type") != "cell" or data.get("cell") not in range(NUM_CELLS):
            raise DataError(
                f"goal {dict(data)!r} is none of the chain's: type must be 'cell', cell in [0, {NUM_CELLS})"
            )
        return super().goal_from_json({"cell": int(data["cell"])})

    def plausibility(self, observation: Array, action: Array, next_observation: Array) -> dict[str, BoolArray]:
        """``jumped``: not where the action leads. ``nowhere``: the next observation is no one-hot vector."""
        cell, next_cell = observation.argmax(-1), next_observation.argmax(-1)
        return {
            "jumped": np.asarray(next_cell != step(cell, action)),
            "nowhere": np.asarray(np.abs(next_observation - one_hot(next_cell)).max(-1) > 1e-3),
        }

    @property
    def symmetries(self) -> list[Symmetry]:
        """As it is, and seen in a mirror."""
        cells, actions = np.arange(NUM_CELLS), np.arange(2)
        mirrored = Symmetry(cells[::-1].copy(), actions[::-1].copy(), {"left": "right", "right": "left"})
        return [Symmetry(cells, actions, {}), mirrored]

    def paraphrases(self, instructed: InstructedGoal) -> list[str]:
        """Two more sentences a goal, but for the hard one."""
        name = CELL_NAMES[instructed.goal.cell]  # type: ignore[attr-defined]
        return [] if name == "centre" else [f"find the {name}", f"your place is the {name}"]

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> DomainVectorEnv:
        """All environments in one array."""
        return ChainVectorEnv(self, num_envs)

    def collect(self, num_rollouts: int, seed: int, first: int = 0, mistake_rate: float = 0.3) -> Iterator[Rollout]:
        """Walk to a random end from a random cell, stepping the wrong way now and then."""
        goals = self.instructed_goals("train")
        for index in range(first, num_rollouts):
            rng = np.random.default_rng([seed, index])
            instructed = goals[rng.integers(len(goals))]
            assert isinstance(instructed.goal, CellGoal)
            cells, actions = [start_cell(rng, instructed.goal)], []
            while len(actions) < MAX_STEPS and cells[-1] != instructed.goal.cell:
                towards = RIGHT if instructed.goal.cell > cells[-1] else LEFT
                actions.append(int(towards ^ (rng.random() < mistake_rate)))
                cells.append(int(step(np.array(cells[-1]), np.array(actions[-1]))))
            observations = one_hot(np.array(cells))
            yield self.label_rollout(instructed, observations, np.array(actions, dtype=np.int64), Source.REAL)

    def draw(self, observation: Array, instruction: str = "", size: int = 256) -> NDArray[np.uint8]:
        """Five grey bars, the current one white; a lighter line above is as long as the instruction."""
        picture = np.full((size, size, 3), 60, dtype=np.uint8)
        cell = int(np.asarray(observation).argmax())
        picture[:, cell * size // NUM_CELLS : (cell + 1) * size // NUM_CELLS] = 255
        picture[:4, : len(instruction)] = 120  # what is wanted, in a way
        return picture


class ChainVectorEnv(DomainVectorEnv):
    """Many chains in one array."""

    def _lay_out(self, row: int, rng: np.random.Generator, goal: Goal, goal_split: str) -> Array:
        return one_hot(np.array(start_cell(rng, goal)))

    def _restore(self, row: int, goal: Goal, observation: Array) -> Array:
        return one_hot(observation.argmax())

    def _simulate(self, rows: NDArray[np.intp], actions: Array) -> Array:
        return one_hot(step(self._observation[rows].argmax(-1), actions))


def one_hot(cell: NDArray[Any]) -> NDArray[np.float32]:
    """Observation of each cell, shape (..., 5)."""
    return np.eye(NUM_CELLS, dtype=np.float32)[cell]


def step(cell: NDArray[Any], action: NDArray[Any]) -> NDArray[Any]:
    """Where an action leads; the ends are walls."""
    return np.clip(cell + np.where(action == RIGHT, 1, -1), 0, NUM_CELLS - 1)


def start_cell(rng: np.random.Generator, goal: Goal) -> int:
    """Any cell but the goal's."""
    assert isinstance(goal, CellGoal)
    return int(rng.choice([cell for cell in range(NUM_CELLS) if cell != goal.cell]))
