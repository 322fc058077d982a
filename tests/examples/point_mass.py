"""A world of one's own in one file, from nothing to a trained policy: ``python -m tests.examples.point_mass``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from lightning.pytorch import Trainer

from kalm.callbacks.rollout_writer import RolloutWriter
from kalm.core.goal import Goal, InstructedGoal
from kalm.data.choice import RolloutFilter
from kalm.data.goal_data import GoalData
from kalm.data.grounding_data import GroundingData
from kalm.data.policy_data import PolicyData
from kalm.data.rollout_sources import ImaginedRollouts, RealRollouts
from kalm.envs.base import Domain
from kalm.envs.evaluation import summarize
from kalm.envs.vector_env import DomainVectorEnv
from kalm.language.encoder import SentenceEncoder
from kalm.llm.backbones.tiny_backbone import TinyBackbone
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.rl.bc import BC

SIDES = {"north": (0, 0.8), "east": (0.8, 0), "south": (0, -0.8), "west": (-0.8, 0)}
CORNERS = {f"{one} {two}": np.add(SIDES[one], SIDES[two]) for one in ("north", "south") for two in ("east", "west")}
PLACES = {"train": SIDES, "novel": CORNERS}


@dataclass(frozen=True)
class Visit(Goal):
    """Be near a place; the reward is 1 then, as nothing else is said."""

    task: str
    max_steps = 30

    def success(self, observation: Any, previous_observation: Any = None, action: Any = None) -> Any:  # noqa: D102
        return np.linalg.norm(observation - (SIDES | CORNERS)[self.task], axis=-1) < 0.15

    def explained_by(self, text: str) -> bool:  # noqa: D102
        return [word for word in text.lower().split() if word in SIDES] == self.task.split()


class PointMass(Domain):
    """A point in a square that is asked to go to a side; corners are for imagination, no data show them."""

    name = "point_mass"
    goal_splits = ("train", "novel")
    goal_class = Visit
    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:  # noqa: D102
        return [InstructedGoal(Visit(p), f"{how} {p}", goal_split) for how in ("go", "fly") for p in PLACES[goal_split]]

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> DomainVectorEnv:  # noqa: D102
        return Square(self, num_envs)

    def expert(self, env: Any, goals: Any, luck: Any) -> Any:
        """Straight ahead, with some noise."""

        def act(seen: np.ndarray, episodes: list[int], info: dict[str, Any]) -> np.ndarray:
            way = np.array([SIDES[goals[number].task] for number in episodes]) - seen
            return np.clip(5 * way + [luck[number].normal(0, 0.3, 2) for number in episodes], -1, 1)

        return act


class Square(DomainVectorEnv):
    """Many points at once."""

    def _lay_out(self, row: int, rng: np.random.Generator, goal: Goal, goal_split: str) -> np.ndarray:
        return rng.uniform(-1, 1, 2)

    def _simulate(self, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return np.clip(self._observation[rows] + 0.1 * actions, -1, 1)


def run(folder: Path, num_rollouts: int = 2000, num_updates: int = 2000) -> dict[str, Any]:
    """Collect, ground a language model, let it imagine, clone both kinds of rollouts, and test."""
    world, encoder = PointMass(), SentenceEncoder()
    real = RealRollouts(str(folder / "real"), num_collected=num_rollouts)
    options: dict[str, Any] = {"default_root_dir": folder, "max_steps": num_updates, "limit_val_batches": 0}
    grounding = GroundingData(world, encoder, real, num_held_out=10)
    Trainer(**options).fit(model := GroundedLLM(grounding.spec, TinyBackbone(encoder)), grounding)
    goals = GoalData(world, encoder, real, {"novel": num_rollouts})
    Trainer(callbacks=[RolloutWriter(max_rejection_rate=1)], **options).predict(model, goals, return_predictions=False)
    both = PolicyData(
        world, encoder, real, ImaginedRollouts([f"{folder}/store"], RolloutFilter.none), updates_per_step=1
    )
    Trainer(**options).fit(policy := BC(both.spec), both)
    Trainer(**options).test(policy, both)
    return summarize(policy.episode_results)


if __name__ == "__main__":
    print(run(Path("checkpoints/point_mass")))  # noqa: T201
