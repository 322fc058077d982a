"""BabyAI as a ``Domain``: joins the grids, goals, sentences, simulator, collection and drawing of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import require
from kalm.core.goal import Array, BoolArray, Goal, InstructedGoal
from kalm.core.rollout import Rollout
from kalm.envs.agent_grid import AgentGrid
from kalm.envs.babyai.abstraction import StateFeatures, abstracted, select_by_rule
from kalm.envs.babyai.facts import facts, possible_facts
from kalm.envs.babyai.goals import MAX_STEPS, BabyAIGoal, goal_from_json
from kalm.envs.babyai.instructions import GOAL_SPLITS, instructed_goals, paraphrases
from kalm.envs.babyai.layout import FIRST_DOOR, NUM_ACTIONS
from kalm.envs.babyai.questions import AGENT_GRID
from kalm.envs.babyai.text import ACTION_ANSWERS, conversation, rules, text_of_state
from kalm.envs.base import Domain

if TYPE_CHECKING:
    from kalm.envs.babyai.places import Places
    from kalm.envs.babyai.vector_env import BabyAIVectorEnv
    from kalm.envs.locality import Locality

FIRST_TEST_GRID = 1_000_000  # number of it; the training grids are numbered from 0
_NUM_PARAPHRASES = 20  # drawn for a goal; some come twice
_SKILL_ROOMS = (6, 1, 2)  # size, rows and columns of the skill grids
_TASKS_OF = {"skill_a": {"pick_up"}, "skill_b": {"open"}, "skill_c": {"pick_up"}}
_LARGEST_STATE = (FIRST_DOOR - 1) * 4 + 4  # of the agent's plane


class BabyAI(Domain):
    """Rooms of coloured things on ``minigrid``, fully observed (TEDUO, section 5).

    The training grids are seeds 0 to ``num_training_grids`` - 1, the test grids others; half of the splits begin in the
    ones, half in the others. A split has the sentences whose goals can be met in one of its grids.

    Args:
        room_size: Tiles along a room, walls included, at least 4; 8 in TEDUO.
        num_rows: Rows of rooms; 3 in TEDUO.
        num_cols: Columns of rooms; 3 in TEDUO.
        num_training_grids: Grids that data are collected in; 40 in TEDUO.
        num_test_grids: Grids that nobody has seen before the test; 2 in TEDUO.
        layout: ``synth``, or one of TEDUO's skill grids of two rooms, whatever the sizes above: ``skill_a`` (pick up
            the box behind an open door), ``skill_b`` (open the closed door) or ``skill_c`` (both).
        random_share: Share of collected rollouts that act at random rather than by minigrid's bot, in [0, 1].
        random_steps: Steps of a random rollout; the bot needs about 60 for a command.
        num_processes: That collect; all cores by default.
        max_steps: After which an episode is truncated; 500 in TEDUO's main tables, 20 in the skill grids, 1000 in
            larger grids. Collecting does not depend on it.
        simulator: ``arrays``, or ``minigrid`` to step minigrid's own environments, which is slow and leads to the same.
    """

    name: ClassVar[str] = "babyai"
    goal_splits: ClassVar[tuple[str, ...]] = GOAL_SPLITS
    sentences_from: ClassVar[Mapping[str, str]] = {
        "new_grids": "train",
        "new_grids_and_goals": "new_goals",
        "new_grids_and_words": "new_words",
    }
    goal_class: ClassVar[type[Any]] = BabyAIGoal

    def __init__(
        self,
        room_size: int = 8,
        num_rows: int = 3,
        num_cols: int = 3,
        num_training_grids: int = 40,
        num_test_grids: int = 20,
        layout: str = "synth",
        random_share: float = 0.0,
        random_steps: int = 60,
        num_processes: int | None = None,
        max_steps: int = MAX_STEPS,
        simulator: str = "arrays",
    ) -> None:
        """Check the settings; no grid is laid out yet."""
        layouts, simulators = ("synth", *_TASKS_OF), ("arrays", "minigrid")
        require(layout in layouts, "layout", layout, f"one of {', '.join(layouts)}")
        require(simulator in simulators, "simulator", simulator, f"one of {', '.join(simulators)}")
        require(4 <= room_size <= 64, "room_size", room_size, "in [4, 64]")
        require(min(num_rows, num_cols) >= 1, "num_rows, num_cols", (num_rows, num_cols), "at least 1")
        require(0 < num_training_grids <= FIRST_TEST_GRID, "num_training_grids", num_training_grids, "at least 1")
        require(num_test_grids >= 1, "num_test_grids", num_test_grids, "at least 1")
        require(0 <= random_share <= 1, "random_share", random_share, "a share, in [0, 1]")
        require(random_steps >= 1, "random_steps", random_steps, "at least 1")
        require(num_processes is None or num_processes >= 1, "num_processes", num_processes, "at least 1, or None")
        require(max_steps >= 1, "max_steps", max_steps, "at least 1")
        self.layout, self.simulator, self.max_steps = layout, simulator, max_steps
        self.room_size, self.num_rows, self.num_cols = (
            (room_size, num_rows, num_cols) if layout == "synth" else _SKILL_ROOMS
        )
        self.num_training_grids, self.num_test_grids = num_training_grids, num_test_grids
        self.random_share, self.random_steps, self.num_processes = random_share, random_steps, num_processes
        width, height = ((self.room_size - 1) * num + 1 for num in (self.num_cols, self.num_rows))
        self.width, self.height = width, height
        self.observation_space = gym.spaces.Box(0, _LARGEST_STATE, (width, height, 2), np.uint8)
        self.action_space = gym.spaces.Discrete(NUM_ACTIONS)
        self._instructed_of: dict[str, list[InstructedGoal]] = {}

    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:
        """Those whose goals can be met in one of the split's grids."""
        if goal_split not in self._instructed_of:
            places, tasks = self.places(goal_split), _TASKS_OF.get(self.layout)
            self._instructed_of[goal_split] = [
                replace(row, goal=replace(row.goal, max_steps=self.max_steps))
                for row in instructed_goals(goal_split, self.width, self.height, self.room_size)
                if isinstance(row.goal, BabyAIGoal)
                and (tasks is None or row.goal.task in tasks)
                and places.starts(row.goal)
            ]
        return list(self._instructed_of[goal_split])

    def goal_from_json(self, data: Mapping[str, Any]) -> BabyAIGoal:  # noqa: D102
        return goal_from_json(data, self.max_steps)

    @property
    def agent_grid(self) -> AgentGrid:
        """Its codes of tiles, and the questions that TEDUO's abstraction answers about a goal."""
        return AGENT_GRID

    def paraphrases(self, instructed: InstructedGoal) -> list[str]:
        """Distinct sentences in the training's own synonyms and patterns, always the same for a goal."""
        if not isinstance(instructed.goal, BabyAIGoal):
            return []
        drawn = paraphrases(instructed.goal, np.random.default_rng(0), _NUM_PARAPHRASES)
        return list(dict.fromkeys(drawn))

    @property
    def action_answers(self) -> tuple[str, ...]:
        """The numbers of the actions."""
        return ACTION_ANSWERS

    def conversation(self, observation: Array, instruction: str) -> list[dict[str, str]]:
        """See ``text.conversation``."""
        return conversation(observation, instruction)

    def state_in_words(self, observation: Array) -> str:
        """See ``text.text_of_state``."""
        return text_of_state(observation)

    @property
    def rules_in_words(self) -> str:
        """See ``text.rules``."""
        return rules(self.width, self.height)

    def invalid(self, observation: Array, action: Array, next_observation: Array) -> BoolArray:
        """Whether nothing changed, as after ``DONE`` and a step into a wall."""
        return np.asarray((observation == next_observation).all(axis=(-3, -2, -1)))

    def goal_features(self, states: Array) -> Callable[[Any], NDArray[np.integer[Any]]]:
        """Where a goal's things are, what is in the hand, and the agent's place where the goal is about it."""
        return StateFeatures(states).keys

    def abstracted(self, states: Array, goal: Goal) -> Array:
        """See ``abstraction``; the domain's rule selects the things, in a language model's place."""
        assert isinstance(goal, BabyAIGoal)
        return abstracted(states, select_by_rule(goal))

    @property
    def possible_facts(self) -> NDArray[np.int64]:
        """See ``facts.possible_facts``."""
        return possible_facts(self.width, self.height)

    def facts(self, states: Array) -> NDArray[np.int32]:
        """See ``facts.facts``."""
        return facts(states)

    @cached_property
    def locality(self) -> Locality:
        """The agent acts on the tile that it faces."""
        from kalm.envs.babyai.locality import GridLocality

        return GridLocality(self.width, self.height)

    def places(self, goal_split: str) -> Places:
        """Where the episodes of a split begin."""
        return self._test_places if "grids" in goal_split else self._training_places

    @cached_property
    def _training_places(self) -> Places:
        return self._lay_out_grids(range(self.num_training_grids))

    @cached_property
    def _test_places(self) -> Places:
        return self._lay_out_grids(range(FIRST_TEST_GRID, FIRST_TEST_GRID + self.num_test_grids))

    def _lay_out_grids(self, numbers: range) -> Places:
        from kalm.envs.babyai.grids import make_grid  # brings minigrid
        from kalm.envs.babyai.places import Places

        level = self.make_level()
        return Places([make_grid(level, number) for number in numbers])

    def make_level(self) -> Any:
        """The level of minigrid that lays out the grids."""
        from kalm.envs.babyai.grids import make_level

        return make_level(self.layout, self.room_size, self.num_rows, self.num_cols)

    def draw(self, observation: Array, instruction: str = "", size: int = 256) -> NDArray[np.uint8]:  # noqa: D102
        from kalm.envs.babyai.drawing import draw_observation  # brings pillow

        return draw_observation(observation, instruction, size)

    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> BabyAIVectorEnv:  # noqa: D102
        from kalm.envs.babyai.vector_env import BabyAIVectorEnv  # brings numba

        return BabyAIVectorEnv(self, num_envs)

    def collect(self, num_rollouts: int, seed: int, first: int = 0) -> Iterator[Rollout]:
        """Rollouts without goals, the n-th in training grid n modulo their number; see ``collection``."""
        from kalm.envs.babyai.collection import collect

        return collect(self, num_rollouts, seed, first)

    @property
    def collection_settings(self) -> dict[str, Any]:  # noqa: D102
        names = ("layout", "room_size", "num_rows", "num_cols", "num_training_grids", "random_share", "random_steps")
        return {name: getattr(self, name) for name in names}
