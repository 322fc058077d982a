"""A world small enough to reason about: five cells in a row, two actions, a goal cell, the whole contract.

A goal names a cell. Training and rephrased goals are the two ends; easy goals are the cells next to the middle; the
hard goal is the middle itself. The best policy is plain (walk towards the goal), every return can be worked out by
hand, and an episode takes microseconds, so learning tests use it.

Shape letters: O = 5 (one-hot cell), B environments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.envs.base import BoolArray, Domain, FloatArray, Goal, InstructedGoal
from kalm.envs.symmetry import Relabelling

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
class CellGoal:
    """Be in one cell."""

    cell: int

    def to_json(self) -> dict[str, Any]:
        """The form that ``ChainDomain.goal_from_json`` reads."""
        return {"type": "cell", "cell": self.cell}


class ChainDomain(Domain):
    """The five-cell chain."""

    name: ClassVar[str] = "chain"
    env_id: ClassVar[str] = "kalm-tests/Chain-v0"
    goal_splits: ClassVar[tuple[str, ...]] = ("train", "rephrase", "easy", "hard")
    observation_space = gym.spaces.Box(0.0, 1.0, (NUM_CELLS,), np.float32)
    action_space = gym.spaces.Discrete(2)
    plausibility_flags: ClassVar[tuple[str, ...]] = ("jumped", "nowhere")
    terminal_reward: ClassVar[float] = 1.0

    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:
        """Every cell of the split in every wording of the split."""
        return [
            InstructedGoal(CellGoal(cell), pattern.format(CELL_NAMES[cell]), goal_split)
            for cell in CELLS[goal_split]
            for pattern in PATTERNS[goal_split]
        ]

    def goal_from_json(self, data: Mapping[str, Any]) -> Goal:
        """Rebuild a cell goal."""
        if data.get("type") != "cell" or data.get("cell") not in range(NUM_CELLS):
            raise DataError(
                f"goal {dict(data)!r} is none of the chain's: type must be 'cell', cell in [0, {NUM_CELLS})"
            )
        return CellGoal(int(data["cell"]))

    def task(self, goal: Goal) -> str:
        """One task a cell."""
        assert isinstance(goal, CellGoal)
        return CELL_NAMES[goal.cell].replace(" ", "_")

    def max_steps(self, goal: Goal) -> int:
        """Enough to walk the chain three times."""
        return MAX_STEPS

    def explains(self, goal: Goal, text: str) -> bool:
        """The text names the goal's cell."""
        assert isinstance(goal, CellGoal)
        return CELL_NAMES[goal.cell] in text

    def success(
        self,
        goal: Goal,
        observation: FloatArray,
        previous_observation: FloatArray | None = None,
        action: NDArray[Any] | None = None,
    ) -> BoolArray:
        """The most likely cell is the goal's."""
        assert isinstance(goal, CellGoal)
        return np.asarray(np.asarray(observation).argmax(-1) == goal.cell)

    def reward(
        self, goal: Goal, observation: FloatArray, action: NDArray[Any], next_observation: FloatArray
    ) -> FloatArray:
        """1 for arriving, else 0."""
        return self.success(goal, next_observation).astype(np.float32)

    def plausibility(
        self, observation: FloatArray, action: NDArray[Any], next_observation: FloatArray
    ) -> dict[str, BoolArray]:
        """``jumped``: not where the action leads. ``nowhere``: the next observation is no one-hot vector."""
        cell, next_cell = observation.argmax(-1), next_observation.argmax(-1)
        return {
            "jumped": np.asarray(next_cell != step(cell, action)),
            "nowhere": np.asarray(np.abs(next_observation - one_hot(next_cell)).max(-1) > 1e-3),
        }

    @property
    def relabellings(self) -> list[Relabelling]:
        """As it is, and seen in a mirror."""
        cells, actions = np.arange(NUM_CELLS), np.arange(2)
        mirrored = Relabelling(cells[::-1].copy(), actions[::-1].copy(), {"left": "right", "right": "left"})
        return [Relabelling(cells, actions, {}), mirrored]

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> gym.vector.VectorEnv:
        """All environments in one array."""
        return ChainVectorEnv(num_envs)

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

    def draw(self, observation: FloatArray, instruction: str = "", size: int = 256) -> NDArray[np.uint8]:
        """Five grey bars, the current one white."""
        picture = np.full((size, size, 3), 60, dtype=np.uint8)
        cell = int(np.asarray(observation).argmax())
        picture[:, cell * size // NUM_CELLS : (cell + 1) * size // NUM_CELLS] = 255
        return picture


class ChainEnv(gym.Env[NDArray[np.float32], np.int64]):
    """The chain as a Gymnasium environment; reset takes ``observation``, ``goal`` and ``instruction`` as options."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}  # type: ignore[misc]

    def __init__(self, render_mode: str | None = None) -> None:
        """Make the environment; Gymnasium passes ``render_mode``."""
        self.domain = ChainDomain()
        self.observation_space = self.domain.observation_space
        self.action_space = self.domain.action_space
        self.render_mode = render_mode
        self._instructed = self.domain.instructed_goals("train")[0]
        self._cell = 2
        self._num_steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        options = options or {}
        default = self.domain.instructed_goals("train")[0]
        goal = options.get("goal", default.goal)
        self._instructed = InstructedGoal(goal, options.get("instruction", default.instruction), default.goal_split)
        if "observation" in options:
            self._cell = int(np.asarray(options["observation"]).argmax())
        else:
            self._cell = start_cell(self.np_random, goal)
        self._num_steps = 0
        return one_hot(np.array(self._cell)), self._info(is_success=False)

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Walk one cell."""
        before = one_hot(np.array(self._cell))
        self._cell = int(step(np.array(self._cell), np.array(action)))
        self._num_steps += 1
        after, goal = one_hot(np.array(self._cell)), self._instructed.goal
        is_success = bool(self.domain.success(goal, after, before, np.array(action)))
        reward = float(self.domain.reward(goal, before, np.array(action), after))
        truncated = not is_success and self._num_steps >= self.domain.max_steps(goal)
        return after, reward, is_success, truncated, self._info(is_success)

    def render(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """The domain's drawing."""
        return self.domain.draw(one_hot(np.array(self._cell)), self._instructed.instruction)

    def _info(self, is_success: bool) -> dict[str, Any]:
        return {"is_success": is_success, "instruction": self._instructed.instruction}


class ChainVectorEnv(gym.vector.VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]):
    """Many chains in one array; an episode depends on its own seed, goal and actions only."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}  # type: ignore[misc]

    def __init__(self, num_envs: int) -> None:
        """Make ``num_envs`` chains."""
        self.domain = ChainDomain()
        self.num_envs = num_envs
        self.single_observation_space = self.domain.observation_space
        self.single_action_space = self.domain.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        default = self.domain.instructed_goals("train")[0]
        self._goals: list[Goal] = [default.goal] * num_envs
        self._instructions = [default.instruction] * num_envs
        self._cells = np.full(num_envs, 2)
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
            if "observations" in options:
                self._cells[i] = np.asarray(options["observations"][i]).argmax()
            else:
                self._cells[i] = start_cell(rng, self._goals[i])
            self._num_steps[i] = 0
        return one_hot(self._cells), self._infos(np.zeros(self.num_envs, dtype=np.bool_))

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Walk one cell in every chain."""
        self._cells = step(self._cells, np.asarray(actions))
        self._num_steps += 1
        goal_cells = np.array([goal.cell for goal in self._goals if isinstance(goal, CellGoal)])
        is_success = self._cells == goal_cells
        truncated = ~is_success & (self._num_steps >= MAX_STEPS)
        return one_hot(self._cells), is_success.astype(np.float64), is_success, truncated, self._infos(is_success)

    def _infos(self, is_success: NDArray[np.bool_]) -> dict[str, Any]:
        return {"is_success": is_success, "instruction": np.array(self._instructions, dtype=object)}


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


if ChainDomain.env_id not in gym.registry:
    gym.register(ChainDomain.env_id, entry_point=ChainEnv)
