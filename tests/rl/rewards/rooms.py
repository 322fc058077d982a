"""A world of one room of BabyAI's things, thrown about at random: for those who learn what states meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Array, Goal, InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.envs.babyai import facts
from kalm.envs.babyai.abstraction import StateFeatures
from kalm.envs.babyai.goals import GoTo, GoToTile, Open, PickUp, PutNext, Thing, goal_from_json
from kalm.envs.babyai.instructions import original_sentence
from kalm.envs.babyai.layout import EMPTY, WALL, code_of, put_agent
from kalm.envs.base import Domain
from kalm.envs.vector_env import DomainVectorEnv
from kalm.store.reader import RolloutStore
from kalm.store.writer import RolloutStoreWriter

SIZE = 9
COLORS = ("red", "green", "blue")
CARRIED = [Thing(kind, color) for kind, color in product(("key", "ball", "box"), COLORS)]
DOORS = [Thing("door", color) for color in COLORS]
_NUM_THINGS = 14


class Room(Domain):
    """Nothing can be done in it but look."""

    name: ClassVar[str] = "room"
    goal_class: ClassVar[type[Any]] = Goal
    observation_space: Any = gym.spaces.Box(0, 255, (SIZE, SIZE, 2), np.uint8)
    action_space: Any = gym.spaces.Discrete(7)

    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:
        """Some of every kind."""
        goals: list[Any] = [PickUp(thing) for thing in CARRIED]
        goals += [GoTo(thing) for thing in (*CARRIED, *DOORS)] + [Open(door) for door in DOORS]
        goals += [PutNext(*pair) for pair in product(CARRIED, (*CARRIED, *DOORS)) if pair[0] != pair[1]]
        goals += [GoToTile(x, y) for x, y in product(range(1, 5), range(1, 5))]
        return [InstructedGoal(goal, original_sentence(goal), goal_split) for goal in goals]

    def goal_from_json(self, data: Mapping[str, Any]) -> Any:
        """As in BabyAI."""
        return goal_from_json(data)

    def goal_features(self, states: Array) -> Callable[[Any], NDArray[np.integer[Any]]]:
        """As in BabyAI."""
        return StateFeatures(states).keys

    @property
    def possible_facts(self) -> NDArray[np.int64]:
        """As in BabyAI."""
        return facts.possible_facts(SIZE, SIZE)

    def facts(self, states: Array) -> NDArray[np.int32]:
        """As in BabyAI."""
        return facts.facts(states)

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> DomainVectorEnv:
        """There is none."""
        raise NotImplementedError


def random_state(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Walls around things of all kinds, and an agent between them who may carry one."""
    tiles = np.full((SIZE, SIZE), WALL, dtype=np.uint8)
    tiles[1:-1, 1:-1] = EMPTY
    places = rng.permutation(np.argwhere(tiles == EMPTY))
    codes = [code_of(thing.kind, thing.color or "") for thing in CARRIED]
    doors = [code_of("door", door.color or "", state) for door in DOORS for state in ("open", "closed")]
    for x, y in places[:_NUM_THINGS]:
        tiles[x, y] = rng.choice(codes if rng.random() < 0.8 else doors)
    x, y = places[_NUM_THINGS].tolist()
    carried = int(rng.choice(codes)) if rng.random() < 0.4 else EMPTY
    return put_agent(tiles, x, y, int(rng.integers(4)), carried)


def looks(num_rollouts: int, num_steps: int, seed: int = 0) -> Iterator[Rollout]:
    """Rollouts that were made for no goal, whose states have nothing to do with each other."""
    for number in range(num_rollouts):
        rng = np.random.default_rng([seed, number])
        yield Rollout(
            goal={},
            instruction="",
            goal_split="",
            source=Source.REAL,
            observations=np.stack([random_state(rng) for _ in range(num_steps + 1)]),
            actions=rng.integers(7, size=num_steps),
            rewards=np.zeros(num_steps, np.float32),
            terminated=np.zeros(num_steps, np.bool_),
            truncated=np.arange(num_steps) == num_steps - 1,
            is_success=False,
        )


def write_looks(path: Path, num_rollouts: int, num_steps: int, seed: int = 0) -> RolloutStore:
    """A finished store of them."""
    domain = Room()
    writer = RolloutStoreWriter(path, domain.name, domain.spec, (), {}, command="look")
    writer.append("0", list(looks(num_rollouts, num_steps, seed)))
    return writer.finish()
