"""CLEVR-Robot as a ``Domain``: joins the goals, rules, simulator, expert and drawing of this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.rollout import Rollout
from kalm.envs.base import BoolArray, Domain, FloatArray, Goal, InstructedGoal
from kalm.envs.clevr_robot.goals import ClevrRobotGoal, goal_from_json
from kalm.envs.clevr_robot.instructions import GOAL_SPLITS, explains, instructed_goals
from kalm.envs.clevr_robot.layout import NUM_ACTIONS, OBSERVATION_SIZE
from kalm.envs.clevr_robot.plausibility import violations
from kalm.envs.clevr_robot.relabellings import ball_permutations
from kalm.envs.clevr_robot.sub_goals import next_sub_goal
from kalm.envs.symmetry import Relabelling


class ClevrRobot(Domain):
    """Five balls on a walled table, pushed one at a time (google-research/clevr_robot_env; KALM's first domain).

    Args:
        action_noise: Share of uniformly random actions among those that ``collect`` carries out and records, in
            [0, 1]. Noise shows a learner more of the world, but with a few thousand rollouts cloning fits the noise too
            and succeeds less.
    """

    name: ClassVar[str] = "clevr_robot"
    env_id: ClassVar[str] = "kalm/ClevrRobot-v0"
    goal_splits: ClassVar[tuple[str, ...]] = GOAL_SPLITS
    plausibility_flags: ClassVar[tuple[str, ...]] = ("out_of_workbench", "beyond_dynamics_limits")
    terminal_reward: ClassVar[float] = 100.0

    def __init__(self, action_noise: float = 0.0) -> None:
        """Check the share of noise; no simulator is built yet."""
        if not 0.0 <= action_noise <= 1.0:
            raise ValueError(f"action_noise is {action_noise}; it is a share, in [0, 1]")
        self.action_noise = action_noise
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (OBSERVATION_SIZE,), np.float64)
        self.action_space = gym.spaces.Discrete(NUM_ACTIONS)

    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:  # noqa: D102
        return list(instructed_goals(goal_split))

    def goal_from_json(self, data: Mapping[str, Any]) -> ClevrRobotGoal:  # noqa: D102
        return goal_from_json(data)

    def task(self, goal: Goal) -> str:  # noqa: D102
        return _ours(goal).task

    def max_steps(self, goal: Goal) -> int:  # noqa: D102
        return _ours(goal).max_steps

    def explains(self, goal: Goal, text: str) -> bool:  # noqa: D102
        return explains(_ours(goal), text)

    def success(  # noqa: D102
        self,
        goal: Goal,
        observation: FloatArray,
        previous_observation: FloatArray | None = None,
        action: NDArray[Any] | None = None,
    ) -> BoolArray:
        return _ours(goal).success(observation, previous_observation, action)

    def reward(  # noqa: D102
        self, goal: Goal, observation: FloatArray, action: NDArray[Any], next_observation: FloatArray
    ) -> FloatArray:
        return _ours(goal).reward(observation, action, next_observation)

    def plausibility(  # noqa: D102
        self, observation: FloatArray, action: NDArray[Any], next_observation: FloatArray
    ) -> dict[str, BoolArray]:
        return violations(observation, action, next_observation)

    def next_sub_goal(self, goal: Goal, observation: FloatArray) -> ClevrRobotGoal | None:  # noqa: D102
        return next_sub_goal(_ours(goal), observation)

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> gym.vector.VectorEnv:  # noqa: D102
        from kalm.envs.clevr_robot.vector_env import ClevrRobotVectorEnv  # brings MuJoCo

        return ClevrRobotVectorEnv(self, num_envs, num_threads)

    def collect(self, num_rollouts: int, seed: int, first: int = 0) -> Iterator[Rollout]:
        """Rollouts of the expert under training instructions, each drawn from ``seed`` and its number alone."""
        from kalm.envs.clevr_robot.collection import expert_rollouts  # brings MuJoCo

        return expert_rollouts(self, range(first, num_rollouts), seed, self.action_noise)

    @property
    def collection_settings(self) -> dict[str, Any]:  # noqa: D102
        return {"action_noise": self.action_noise}

    @property
    def relabellings(self) -> Sequence[Relabelling]:  # noqa: D102
        return ball_permutations()

    def draw(self, observation: FloatArray, instruction: str = "", size: int = 256) -> NDArray[np.uint8]:  # noqa: D102
        from kalm.envs.clevr_robot.drawing import draw_observation  # brings pillow

        return draw_observation(observation, instruction, size)


def _ours(goal: Goal) -> ClevrRobotGoal:
    if not isinstance(goal, ClevrRobotGoal):
        raise TypeError(f"{goal!r} is a goal of another domain than clevr_robot")
    return goal
