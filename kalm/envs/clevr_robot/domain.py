"""CLEVR-Robot as a ``Domain``: joins the goals, rules, simulator, expert and drawing of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Array, BoolArray, Goal, InstructedGoal
from kalm.envs.base import Domain
from kalm.envs.clevr_robot.goals import ClevrRobotGoal, goal_from_json
from kalm.envs.clevr_robot.instructions import GOAL_SPLITS, UNSEEN_SPLITS, instructed_goals
from kalm.envs.clevr_robot.layout import NUM_ACTIONS, NUM_BALLS, OBSERVATION_SIZE, ball_permutations
from kalm.envs.clevr_robot.paraphrases import paraphrases
from kalm.envs.clevr_robot.plausibility import violations
from kalm.envs.clevr_robot.sub_goals import next_sub_goal
from kalm.envs.simulation import Act
from kalm.envs.symmetry import Symmetry

if TYPE_CHECKING:
    from kalm.envs.clevr_robot.vector_env import ClevrRobotVectorEnv
    from kalm.envs.vector_env import DomainVectorEnv

# Sentences that are drawn for a goal of a kind; there are 80 placements, 20 pushes and 162 hard goals.
_NUM_PARAPHRASES = {"place": 12, "move": 30}
_NUM_HARD_PARAPHRASES = 3


class ClevrRobot(Domain):
    """Five balls on a walled table, pushed one at a time (google-research/clevr_robot_env; KALM's first domain).

    Args:
        action_noise: Share of uniformly random actions among those that ``collect`` carries out and records, in
            [0, 1]. Noise shows a learner more of the world, but with a few thousand rollouts cloning fits the noise too
            and succeeds less.
    """

    name: ClassVar[str] = "clevr_robot"
    goal_splits: ClassVar[tuple[str, ...]] = GOAL_SPLITS
    unseen_splits: ClassVar[Mapping[str, str]] = UNSEEN_SPLITS
    goal_class: ClassVar[type[Any]] = ClevrRobotGoal
    plausibility_flags: ClassVar[tuple[str, ...]] = ("out_of_workbench", "beyond_dynamics_limits")

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

    def paraphrases(self, instructed: InstructedGoal) -> list[str]:
        """Of any goal, as many as make the kinds of goals about equally many sentences; the same for every run."""
        goal = instructed.goal
        assert isinstance(goal, ClevrRobotGoal)
        # The goal decides what is drawn, so that two goals do not share all patterns.
        rng = np.random.default_rng(list(json.dumps(goal.to_json(), sort_keys=True).encode()))
        drawn = paraphrases(goal, rng, _NUM_PARAPHRASES.get(goal.kind, _NUM_HARD_PARAPHRASES))
        return list(dict.fromkeys(drawn))

    def plausibility(self, observation: Array, action: Array, next_observation: Array) -> dict[str, BoolArray]:
        """By what real transitions never do."""
        return violations(observation, action, next_observation)

    def next_sub_goal(self, goal: Goal, observation: Array) -> ClevrRobotGoal | None:  # noqa: D102
        return next_sub_goal(goal, observation)

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> ClevrRobotVectorEnv:  # noqa: D102
        from kalm.envs.clevr_robot.vector_env import ClevrRobotVectorEnv  # brings MuJoCo

        return ClevrRobotVectorEnv(self, num_envs, num_threads)

    def expert(self, env: DomainVectorEnv, goals: Sequence[Goal], luck: Sequence[np.random.Generator]) -> Act:
        """It looks ahead in ``env`` where a push has failed; ``action_noise`` of its actions are random ones."""
        from kalm.envs.clevr_robot.expert import Expert
        from kalm.envs.clevr_robot.vector_env import ClevrRobotVectorEnv

        assert isinstance(env, ClevrRobotVectorEnv)
        return Expert(env.try_actions, goals, luck, self.action_noise)

    @property
    def collection_settings(self) -> dict[str, Any]:  # noqa: D102
        return {"action_noise": self.action_noise}

    @property
    def symmetries(self) -> Sequence[Symmetry]:
        """The balls differ in colour only."""
        return ball_permutations()

    @property
    def things(self) -> Sequence[slice]:
        """The balls."""
        return [slice(2 * ball, 2 * ball + 2) for ball in range(NUM_BALLS)]

    def draw(self, observation: Array, instruction: str = "", size: int = 256) -> NDArray[np.uint8]:  # noqa: D102
        from kalm.envs.clevr_robot.drawing import draw_observation  # brings pillow

        return draw_observation(observation, instruction, size)
