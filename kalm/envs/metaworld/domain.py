"""Meta-World as a ``Domain``: joins the goals, rules, simulator, experts and drawing of this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.rollout import Rollout
from kalm.envs.base import BoolArray, Domain, FloatArray, Goal, InstructedGoal
from kalm.envs.metaworld.goals import TaskGoal, goal_from_json
from kalm.envs.metaworld.instructions import GOAL_SPLITS, explains, instructed_goals
from kalm.envs.metaworld.layout import ACTION_SIZE, ENTITIES, OBSERVATION_SIZE, pose_slice
from kalm.envs.metaworld.mirror import mirror_images
from kalm.envs.metaworld.plausibility import FLAGS, violations
from kalm.envs.metaworld.potential import POTENTIALS
from kalm.envs.metaworld.success import SUCCESS
from kalm.envs.symmetry import Relabelling

SUCCESS_REWARD = 10.0  # on top of the change of the potential, as in the paper


class MetaWorld(Domain):
    """A robot arm at a table with doors, windows, buttons and tools (metaworld 3; KALM's second domain).

    Args:
        action_noise: Standard deviation of normal noise on each number of the actions that ``collect`` carries out and
            records, in units of the action's range [-1, 1]. It shows a learner how to get back on course.
        horizon: Steps after which an episode is truncated (paper: 100). The experts of make-coffee and
            locked-door-open take about 90 and 150 steps.
        absent_entity_noise: Whether each episode shows one entity that is not there, at a random place, as the paper's
            benchmark does; off by default, since it says nothing about any goal.
    """

    name: ClassVar[str] = "metaworld"
    env_id: ClassVar[str] = "kalm/MetaWorld-v0"
    goal_splits: ClassVar[tuple[str, ...]] = GOAL_SPLITS
    plausibility_flags: ClassVar[tuple[str, ...]] = FLAGS
    terminal_reward: ClassVar[float | None] = None  # ``reward`` pays for success itself

    def __init__(self, action_noise: float = 0.1, horizon: int = 100, absent_entity_noise: bool = False) -> None:
        """Check the numbers; no simulator is imported yet."""
        if not 0.0 <= action_noise <= 2.0:
            raise ValueError(f"action_noise is {action_noise}; it is a standard deviation, in [0, 2]")
        if horizon < 1:
            raise ValueError(f"horizon is {horizon}; it must be 1 step or more")
        self.action_noise = action_noise
        self.horizon = horizon
        self.absent_entity_noise = absent_entity_noise
        # All real positions lie well within; what falls off the table meets the floor at -0.9.
        self.observation_space = gym.spaces.Box(-4.0, 4.0, (OBSERVATION_SIZE,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)

    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:  # noqa: D102
        return list(instructed_goals(goal_split))

    def goal_from_json(self, data: Mapping[str, Any]) -> TaskGoal:  # noqa: D102
        return goal_from_json(data)

    def task(self, goal: Goal) -> str:  # noqa: D102
        return _ours(goal).task

    def max_steps(self, goal: Goal) -> int:  # noqa: D102
        return self.horizon

    def explains(self, goal: Goal, text: str) -> bool:  # noqa: D102
        return explains(_ours(goal), text)

    def success(
        self,
        goal: Goal,
        observation: FloatArray,
        previous_observation: FloatArray | None = None,
        action: NDArray[Any] | None = None,
    ) -> BoolArray:
        """Whether the task is done, from the observation after the step alone, shape (...)."""
        return SUCCESS[_ours(goal).task](observation)

    def reward(
        self, goal: Goal, observation: FloatArray, action: NDArray[Any], next_observation: FloatArray
    ) -> FloatArray:
        """Change of the task's potential, plus ``SUCCESS_REWARD`` where the task is done afterwards, shape (...)."""
        potential = POTENTIALS[_ours(goal).task]
        is_success = SUCCESS[_ours(goal).task](next_observation)
        return potential(next_observation) - potential(observation) + SUCCESS_REWARD * is_success

    def plausibility(  # noqa: D102
        self, observation: FloatArray, action: NDArray[Any], next_observation: FloatArray
    ) -> dict[str, BoolArray]:
        return violations(observation, action, next_observation)

    def first_observation(self, goal: Goal, rng: np.random.Generator) -> FloatArray:
        """The task's own scene, laid out anew: no other task's shows what the goal is about."""
        from kalm.envs.metaworld.episode import start_episode  # brings MuJoCo

        return start_episode(self, rng, goal=goal).observation

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> gym.vector.VectorEnv:  # noqa: D102
        from kalm.envs.metaworld.vector_env import MetaWorldVectorEnv  # brings MuJoCo

        return MetaWorldVectorEnv(self, num_envs, num_threads)

    def collect(self, num_rollouts: int, seed: int, first: int = 0) -> Iterator[Rollout]:
        """Rollouts of the experts under training instructions, each drawn from ``seed`` and its number alone."""
        from kalm.envs.metaworld.collection import expert_rollouts  # brings MuJoCo

        return expert_rollouts(self, range(first, num_rollouts), seed, self.action_noise)

    @property
    def mirror_images(self) -> Sequence[Relabelling]:
        """As it is, and left and right exchanged."""
        return mirror_images()

    @property
    def entities(self) -> Sequence[slice]:
        """One pose each."""
        return [pose_slice(entity) for entity in ENTITIES]

    @property
    def collection_settings(self) -> dict[str, Any]:  # noqa: D102
        return {
            "action_noise": self.action_noise,
            "horizon": self.horizon,
            "absent_entity_noise": self.absent_entity_noise,
        }

    def draw(self, observation: FloatArray, instruction: str = "", size: int = 256) -> NDArray[np.uint8]:  # noqa: D102
        from kalm.envs.metaworld.drawing import draw_observation  # brings pillow

        return draw_observation(observation, instruction, size)


def _ours(goal: Goal) -> TaskGoal:
    if not isinstance(goal, TaskGoal):
        raise TypeError(f"{goal!r} is a goal of another domain than metaworld")
    return goal
