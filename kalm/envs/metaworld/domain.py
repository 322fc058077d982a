"""Meta-World as a ``Domain``: joins the goals, rules, simulator, experts and drawing of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Array, BoolArray, Goal, InstructedGoal
from kalm.envs.base import Domain
from kalm.envs.metaworld.goals import HORIZON, TaskGoal, goal_from_json
from kalm.envs.metaworld.layout import (
    ACTION_SIZE,
    ENTITIES,
    HAND,
    OBSERVATION_SIZE,
    OPENING,
    TARGET,
    mirror_images,
    pose_slice,
    stand_ins,
)
from kalm.envs.metaworld.plausibility import FLAGS, violations
from kalm.envs.simulation import Act
from kalm.envs.symmetry import Symmetry

if TYPE_CHECKING:
    from kalm.envs.metaworld.vector_env import MetaWorldVectorEnv
    from kalm.envs.vector_env import DomainVectorEnv

# Goals in words that nothing shows before the test: the split that has the same goals.
UNSEEN_SPLITS = {"rephrase_unseen": "rephrase", "easy_unseen": "easy", "hard_unseen": "hard"}


@cache
def _sentences(goal_split: str) -> dict[str, list[str]]:
    """The instructions of each task of a split, in the order of the data file."""
    path = Path(__file__).parent / "instructions" / f"{goal_split}.json"
    sentences: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return sentences


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
    unseen_splits: ClassVar[Mapping[str, str]] = UNSEEN_SPLITS
    # From seen to new (KALM, section 4).
    goal_splits: ClassVar[tuple[str, ...]] = ("train", "rephrase", "easy", "hard", *UNSEEN_SPLITS)
    goal_class: ClassVar[type[Any]] = TaskGoal
    plausibility_flags: ClassVar[tuple[str, ...]] = FLAGS
    render_fps: ClassVar[int] = 80

    def __init__(self, action_noise: float = 0.1, horizon: int = HORIZON, absent_entity_noise: bool = False) -> None:
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
        goals = ((TaskGoal(task, self.horizon), texts) for task, texts in _sentences(goal_split).items())
        return [InstructedGoal(goal, text, goal_split) for goal, texts in goals for text in texts]

    def goal_from_json(self, data: Mapping[str, Any] | str) -> TaskGoal:  # noqa: D102
        return goal_from_json(data, self.horizon)

    def plausibility(self, observation: Array, action: Array, next_observation: Array) -> dict[str, BoolArray]:
        """By what real transitions never do."""
        return violations(observation, action, next_observation)

    def first_observation(self, goal: Goal, rng: np.random.Generator) -> Array:
        """The task's own scene, laid out anew: no other task's shows what the goal is about."""
        env = self.make_vector_env(1, 1)
        env.rngs[0] = rng
        return env.reset(options={"goals": [goal]})[0][0]

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> MetaWorldVectorEnv:  # noqa: D102
        from kalm.envs.metaworld.vector_env import MetaWorldVectorEnv  # brings MuJoCo

        return MetaWorldVectorEnv(self, num_envs, num_threads)

    def expert(self, env: DomainVectorEnv, goals: Sequence[Goal], luck: Sequence[np.random.Generator]) -> Act:
        """The package's scripted policies, with noise on their actions."""
        from kalm.envs.metaworld.expert import noisy_experts  # brings the package

        return noisy_experts([goal.task for goal in goals], luck, self.action_noise)

    @property
    def mirror_images(self) -> Sequence[Symmetry]:
        """As it is, and left and right exchanged."""
        return mirror_images()

    @property
    def stand_ins(self) -> Sequence[Symmetry]:
        """The mirror images, and these with a ball or a hammer in the place of the puck."""
        return stand_ins()

    @property
    def entities(self) -> Sequence[slice]:
        """One pose each."""
        return [pose_slice(entity) for entity in ENTITIES]

    @property
    def things(self) -> Sequence[slice]:
        """The gripper, the target location and the entities."""
        return [slice(HAND.start, OPENING + 1), TARGET, *self.entities]

    @property
    def collection_settings(self) -> dict[str, Any]:  # noqa: D102
        return {name: getattr(self, name) for name in ("action_noise", "horizon", "absent_entity_noise")}

    def draw(self, observation: Array, instruction: str = "", size: int = 256) -> NDArray[np.uint8]:  # noqa: D102
        from kalm.envs.metaworld.drawing import draw_observation  # brings pillow

        return draw_observation(observation, instruction, size)
