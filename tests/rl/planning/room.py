"""Two BabyAI rooms with a ball, a key and a door between them, and stores of random walks through them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Goal, InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.envs.babyai.goals import BabyAIGoal, GoTo, GoToTile, Open, PickUp, PutNext, Thing, goal_from_json
from kalm.envs.babyai.layout import EMPTY, NUM_ACTIONS, WALL, code_of, put_agent
from kalm.envs.babyai.locality import GridLocality
from kalm.envs.babyai.simulator import next_states
from kalm.envs.base import Domain
from kalm.envs.locality import Locality
from kalm.envs.vector_env import DomainVectorEnv
from kalm.judging.judge import DomainRule
from kalm.store.labels import GOAL_STATE, LabelWriter
from kalm.store.reader import RolloutStore
from kalm.store.writer import RolloutStoreWriter

SIZE = 7
BALL, KEY, DOOR = Thing("ball", "red"), Thing("key", "blue"), Thing("door", "green")
GOALS: tuple[tuple[Goal, str], ...] = (
    (PickUp(BALL), "pick up the red ball"),
    (GoTo(KEY), "go to the blue key"),
    (Open(DOOR), "open the green door"),
    (PutNext(BALL, KEY), "put the red ball next to the blue key"),
    (GoToTile(5, 3), "go to the tile (5, 3)"),
    (PickUp(Thing("box")), "pick up a box"),  # there is none
)


def tiles(number: int = 0) -> NDArray[np.uint8]:
    """Two rooms, a door between them, two things, and a pillar whose place depends on the grid's number."""
    found = np.full((SIZE, SIZE), WALL, dtype=np.uint8)
    found[1:-1, 1:-1] = EMPTY
    found[4, 1:-1] = WALL
    found[4, 2] = code_of("door", "green", "closed")
    found[2, 1 + number % 3] = WALL
    found[1, 1] = code_of("ball", "red")
    found[3, 4] = code_of("key", "blue")
    return found


class Room(Domain):
    """One training split."""

    name: ClassVar[str] = "room"
    goal_class: ClassVar[type[Any]] = BabyAIGoal
    observation_space: Any = gym.spaces.Box(0, 255, (SIZE, SIZE, 2), np.uint8)
    action_space: Any = gym.spaces.Discrete(NUM_ACTIONS)
    locality: Locality = GridLocality(SIZE, SIZE)

    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:
        """One sentence a goal."""
        return [InstructedGoal(goal, sentence, goal_split) for goal, sentence in GOALS]

    def goal_from_json(self, data: Any) -> Goal:
        """BabyAI's."""
        return goal_from_json(data)

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> DomainVectorEnv:
        """All rooms in one array."""
        return RoomEnv(self, num_envs)


class RoomEnv(DomainVectorEnv):
    """Rooms as the simulator steps them."""

    def _lay_out(self, row: int, rng: np.random.Generator, goal: Goal, goal_split: str) -> Any:
        return random_state(rng)

    def _simulate(self, rows: Any, actions: Any) -> Any:
        return next_states(self._observation[rows], actions)


def random_state(rng: np.random.Generator, number: int = 0) -> NDArray[np.uint8]:
    """An agent anywhere where it can stand."""
    found = tiles(number)
    x, y = rng.choice(np.argwhere(found == EMPTY))
    return put_agent(found, int(x), int(y), int(rng.integers(4)))


def walk(rng: np.random.Generator, num_steps: int, number: int = 0, with_grid: bool = True) -> Rollout:
    """Random actions, for nothing in particular."""
    states, actions = [random_state(rng, number)], rng.integers(NUM_ACTIONS, size=num_steps)
    for action in actions:
        states.append(next_states(states[-1][None], np.array([action]))[0])
    return Rollout(
        goal={},
        instruction="",
        goal_split="",
        source=Source.REAL,
        observations=np.stack(states),
        actions=actions,
        rewards=np.zeros(num_steps, np.float32),
        terminated=np.zeros(num_steps, np.bool_),
        truncated=np.arange(num_steps) == num_steps - 1,
        is_success=False,
        provenance={"grid": number} if with_grid else {},
    )


def walks(
    path: Path, num_rollouts: int = 20, num_steps: int = 60, num_grids: int = 2, with_grid: bool = True
) -> RolloutStore:
    """A store of random walks, a few for each grid."""
    domain = Room()
    writer = RolloutStoreWriter(path, domain.name, domain.spec, (), {"walks": num_rollouts}, command="walk")
    made = [
        walk(np.random.default_rng([7, number]), num_steps, number % num_grids, with_grid)
        for number in range(num_rollouts)
    ]
    writer.append("0", made)
    return writer.finish()


def label_by_rule(store: RolloutStore, goals: Sequence[tuple[Goal, str]] = GOALS, name: str = "truth") -> None:
    """Write which states meet which goals, by the rule: a row for each state that does, and one that does not."""
    judge = DomainRule(Room())
    writer = LabelWriter(store, judge, GOAL_STATE, name=name)
    states = store.observations(np_to_rows(store.num_states))
    for number, (goal, sentence) in enumerate(goals):
        said = judge.judge_states(goal, states)
        kept = np.union1d(np.flatnonzero(said.met), [0])
        verdict = type(said)(said.met[kept], said.score[kept], said.abstained[kept])
        row = {"goal": goal.to_json(), "instruction": sentence}
        writer.append(f"{number:03d}", verdict, [row], np.zeros(len(kept), np.int64), kept)
    writer.finish()


def np_to_rows(size: int) -> Any:
    """Numbers of all states."""
    import torch

    return torch.arange(size)
