"""A room of 5 x 5 tiles with a red ball and a blue box in it, to be gone to: a grid that one agent walks on, and plans.

Shape letters: W = H = 5, A = 7 actions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core.goal import Array, Goal, InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.data.evaluation_episodes import EvaluationEpisodes
from kalm.data.plan_data import PlanData, Plans
from kalm.envs.agent_grid import AgentGrid
from kalm.envs.babyai.goals import BabyAIGoal, GoTo, GoToTile, Thing, goal_from_json
from kalm.envs.babyai.layout import EMPTY, NUM_ACTIONS, WALL, code_of, put_agent
from kalm.envs.babyai.questions import AGENT_GRID
from kalm.envs.babyai.simulator import next_states
from kalm.envs.base import Domain
from kalm.envs.vector_env import DomainVectorEnv
from kalm.store.reader import is_finished_store
from kalm.store.writer import RolloutStoreWriter
from tests.word_encoder import WordEncoder

SIZE = 5
MAX_STEPS = 40
NUM_PLANS = 500  # enough for what has no notion of a map to learn the room, and not merely the plans
WALKING = (0, 1, 2)  # turn left, turn right, go ahead


GOALS: dict[str, BabyAIGoal] = {
    "go to the red ball": GoTo(Thing("ball", "red"), max_steps=MAX_STEPS),
    "go to the blue box": GoTo(Thing("box", "blue"), max_steps=MAX_STEPS),
    "go to the tile (2, 3)": GoToTile(2, 3, max_steps=MAX_STEPS),
}


class RoomDomain(Domain):
    """The room."""

    name: ClassVar[str] = "room"
    goal_splits: ClassVar[tuple[str, ...]] = ("train",)
    goal_class: ClassVar[type[Any]] = BabyAIGoal
    observation_space: Any = gym.spaces.Box(0, 255, (SIZE, SIZE, 2), np.uint8)
    action_space: Any = gym.spaces.Discrete(NUM_ACTIONS)

    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:
        """Three goals."""
        return [InstructedGoal(goal, sentence, goal_split) for sentence, goal in GOALS.items()]

    def goal_from_json(self, data: Any) -> BabyAIGoal:
        """As BabyAI's."""
        return goal_from_json(data, MAX_STEPS)

    @property
    def agent_grid(self) -> AgentGrid:
        """As BabyAI's."""
        return AGENT_GRID

    def paraphrases(self, instructed: InstructedGoal) -> Sequence[str]:
        """One more sentence a goal."""
        return [instructed.instruction.replace("go to", "walk to")]

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> DomainVectorEnv:
        """All environments in one array."""
        return RoomVectorEnv(self, num_envs)


class RoomVectorEnv(DomainVectorEnv):
    """Many rooms in one array."""

    def _lay_out(self, row: int, rng: np.random.Generator, goal: Goal, goal_split: str) -> Array:
        assert isinstance(goal, BabyAIGoal)
        state = random_state(rng)
        while state.tobytes() not in steps_to_go(state, goal):  # where a thing stands on the tile that is to be gone to
            state = random_state(rng)
        return state

    def _restore(self, row: int, goal: Goal, observation: Array) -> Array:
        return observation

    def _simulate(self, rows: NDArray[np.intp], actions: Array) -> Array:
        return next_states(self._observation[rows], actions)


def random_state(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Two things and an agent anywhere, shape (W, H, 2)."""
    tiles = np.full((SIZE, SIZE), WALL, dtype=np.uint8)
    tiles[1:-1, 1:-1] = EMPTY
    places = rng.permutation(np.argwhere(tiles == EMPTY))
    tiles[tuple(places[0])], tiles[tuple(places[1])] = code_of("ball", "red"), code_of("box", "blue")
    return put_agent(tiles, *places[2].tolist(), int(rng.integers(4)))


def steps_to_go(state: NDArray[np.uint8], goal: BabyAIGoal) -> dict[bytes, int]:
    """Steps to the goal of every state that walking leads to from ``state``; a state whose goal holds has 0."""
    states = {state.tobytes(): state}
    waiting = [state]
    after: dict[bytes, list[bytes]] = {}
    while waiting:
        one = waiting.pop()
        reached = next_states(np.stack([one] * len(WALKING)), np.array(WALKING))
        after[one.tobytes()] = [other.tobytes() for other in reached]
        waiting += [other for other in reached if other.tobytes() not in states]
        states |= {other.tobytes(): other for other in reached}
    steps = {name: 0 for name, one in states.items() if goal.success(one)}
    for number in range(1, len(states)):
        near = [name for name in states if name not in steps and any(steps.get(n) == number - 1 for n in after[name])]
        if not near:
            break
        steps |= dict.fromkeys(near, number)
    return steps


def plans(num_rollouts: int, seed: int = 0) -> Iterator[Rollout]:
    """Shortest ways to the goals, taken in turn, with all actions that are optimal on them."""
    domain = RoomDomain()
    for number in range(num_rollouts):
        rng = np.random.default_rng([seed, number])
        instructed = domain.instructed_goals("train")[number % len(GOALS)]
        state = random_state(rng)
        while not (steps := steps_to_go(state, instructed.goal)).get(state.tobytes()):  # met, or out of reach
            state = random_state(rng)
        states, actions, optimal = [state], [], []
        while left := steps[states[-1].tobytes()]:
            reached = next_states(np.stack([states[-1]] * NUM_ACTIONS), np.arange(NUM_ACTIONS))
            best = np.array([steps.get(one.tobytes(), np.inf) == left - 1 for one in reached]) & (np.arange(7) < 3)
            actions.append(int(rng.choice(np.flatnonzero(best))))
            optimal.append(best)
            states.append(reached[actions[-1]])
        is_last = np.arange(len(actions)) == len(actions) - 1
        yield Rollout(
            goal=instructed.goal.to_json(),
            instruction=instructed.instruction,
            goal_split="train",
            source=Source.IMAGINARY,
            observations=np.stack(states),
            actions=np.array(actions),
            rewards=is_last.astype(np.float32),
            terminated=is_last,
            truncated=np.zeros_like(is_last),
            is_success=True,
            optimal_actions=np.stack(optimal),
        )


@functools.cache
def _plans_to_learn_from(seed: int) -> list[Rollout]:
    return list(plans(NUM_PLANS, seed))


def write_plans(folder: Path, seed: int = 0) -> None:
    """A store of plans."""
    writer = RolloutStoreWriter(folder, "room", RoomDomain().spec, (), {}, "make rooms", (), True)
    writer.append("all", _plans_to_learn_from(seed))
    writer.finish()


def room_data(folder: Path, **options: Any) -> PlanData:
    """Plans of the room, written to ``folder`` on first use."""
    if not is_finished_store(folder / "plans"):
        write_plans(folder / "plans")
    defaults: dict[str, Any] = {
        "num_goals": 4,
        "num_states": 4,
        "token_noise": 0.0,
        "evaluation": EvaluationEpisodes(num_validation_episodes=6, num_test_episodes=24),
    }
    return PlanData(RoomDomain(), RoomEncoder(), Plans([str(folder / "plans")]), **{**defaults, **options})


class RoomEncoder(WordEncoder):
    """A random vector a word."""

    def token_vectors(self, texts: Sequence[str]) -> Any:
        """Vectors (n, L, E) and which are real, (n, L)."""
        words = [[self._word(word) for word in text.split()] for text in texts]
        lengths = torch.tensor([len(own) for own in words])
        vectors = torch.zeros(len(texts), int(lengths.max()), self.embedding_size)
        for row, own in enumerate(words):
            vectors[row, : len(own)] = torch.tensor(np.stack(own))
        return vectors, torch.arange(vectors.shape[1]) < lengths[:, None]
