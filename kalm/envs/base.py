"""The Domain contract: everything that KALM needs to know about a world, and nothing about learning.

A domain is spaces, goals in named splits with their sentences, a simulator with an expert, and what can be told of any
step without one: which are implausible, which symmetries the world has. When a goal is met and what a step is worth,
the goal itself says (``kalm.core.goal``).
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.goal import Array, BoolArray, Goal, InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.core.specs import Spec, spec_of_spaces
from kalm.envs.agent_grid import AgentGrid
from kalm.envs.goal_splits import GoalSplits
from kalm.envs.simulation import Act, collect
from kalm.envs.symmetry import Symmetry

if TYPE_CHECKING:
    from kalm.envs.locality import Locality
    from kalm.envs.vector_env import DomainVectorEnv


class Domain(GoalSplits):
    """A world as KALM sees it. Subclass it in one package under ``kalm/envs/``, or anywhere else, to add a world.

    Attributes:
        name: Folder name under ``checkpoints/`` and ``conf/``, for example ``clevr_robot``.
        goal_class: What all its goals are.
        observation_space: What is seen, a Gymnasium space of any kind.
        action_space: What can be done, another.
        plausibility_flags: Names of the ways in which a transition can be implausible.
        render_fps: Pictures a second that show the world at its own speed.
    """

    name: ClassVar[str]
    goal_class: ClassVar[type[Any]]
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    plausibility_flags: ClassVar[tuple[str, ...]] = ()
    render_fps: ClassVar[int] = 4

    # --- goals ------------------------------------------------------------------------------------------------------

    def goal_from_json(self, data: Mapping[str, Any]) -> Goal:
        """Rebuild a goal from its ``to_json`` form; by default that is the fields of ``goal_class``.

        Raises:
            DataError: If ``data`` describes no goal of this domain; the message names the field and what is allowed.
        """
        try:
            return self.goal_class(**data)
        except TypeError as error:
            raise DataError(f"a goal of {self.name} is {data!r}: {error}") from error

    # --- what can be told without a simulator: pure, batched functions of arrays ------------------------------------

    def plausibility(self, observation: Array, action: Array, next_observation: Array) -> dict[str, BoolArray]:
        """One flag a transition for each of ``plausibility_flags``, shape (...); True marks a violation."""
        return {}

    def invalid(self, observation: Array, action: Array, next_observation: Array) -> BoolArray | None:
        """Which actions could not be carried out, shape (...), such as a step into a wall; None if none can tell."""
        return None

    def next_sub_goal(self, goal: Goal, observation: Array) -> Goal | None:
        """Which part of ``goal``, itself a goal of some split, to pursue next from an observation of shape (O,).

        It is None where all parts hold, and unless a domain names parts.
        """
        return None

    def first_observation(self, goal: Goal, rng: np.random.Generator) -> Array | None:
        """A real observation to imagine ``goal`` from, shape (O,), where it matters what the goal is.

        It is None where every first observation of the data will do, as in a world that looks the same for all goals.
        """
        return None

    @property
    def symmetries(self) -> Sequence[Symmetry]:
        """Exchanges of names under which rollouts stay true: the simulator makes those rollouts too."""
        return ()

    @property
    def mirror_images(self) -> Sequence[Symmetry]:
        """How the world looks as it is and in mirrors, where the same laws hold; none unless a domain has some.

        What stands in a mirror world, such as a window that slides the other way, need not exist in the simulator.
        """
        return ()

    @property
    def stand_ins(self) -> Sequence[Symmetry]:
        """The mirror images, and these with things in the place of others that are handled alike, such as a ball's.

        None unless a domain has some. What they show is about right, and no more.
        """
        return ()

    @property
    def entities(self) -> Sequence[slice]:
        """Where in an observation the numbers of each thing lie that a scene may lack; they are then all zero."""
        return ()

    @property
    def things(self) -> Sequence[slice]:
        """Where in an observation the numbers of each thing lie; a policy that reads token by token sees them apart."""
        return ()

    @property
    def agent_grid(self) -> AgentGrid:
        """What students of plans are told of the world, and whoever reads its grids relies on.

        Raises:
            DataError: Unless the world is a grid that one agent walks on.
        """
        raise DataError(f"the domain {self.name} is no grid that one agent walks on, which is what is read here")

    def paraphrases(self, instructed: InstructedGoal) -> Sequence[str]:
        """Other sentences for an instruction's goal, which training may show; none has words that the tests keep."""
        return ()

    def descriptions(self, before: Array, after: Array) -> list[Sequence[str]]:
        """What anybody can say who sees B steps, of each some sentences: what moved, and where; by default nothing.

        Hindsight captions: they name what the numbers of an observation are, and ask no goal's rule.

        Args:
            before: Observations before the steps, shape (B, O).
            after: Observations after them, shape (B, O).
        """
        return [()] * len(before)

    def composed(self, goals: Sequence[Goal], rng: np.random.Generator) -> str | None:
        """A sentence that asks for several training goals at once, in words of no test; None for goals that go ill.

        It is for who learns to take such sentences apart. None by default.
        """
        return None

    @property
    def action_answers(self) -> Sequence[str]:
        """What a language model that is asked by ``conversation`` answers, one text for each discrete action.

        Raises:
            DataError: Unless the world is one that can be told in words.
        """
        raise DataError(f"the domain {self.name} does not tell its states in words")

    def conversation(self, observation: Any, instruction: str) -> list[dict[str, str]]:
        """Messages that ask a language model for the next action, each with a role and its content.

        Raises:
            DataError: Unless the world is one that can be told in words.
        """
        raise DataError(f"the domain {self.name} does not tell its states in words")

    def state_in_words(self, observation: Any) -> str:
        """A state as a text for a language model.

        Raises:
            DataError: Unless the world is one that can be told in words.
        """
        raise DataError(f"the domain {self.name} does not tell its states in words")

    @property
    def rules_in_words(self) -> str:
        """What a language model must know to say whether a goal is met in a state that is told in words.

        Raises:
            DataError: Unless the world is one that can be told in words.
        """
        raise DataError(f"the domain {self.name} does not tell its states in words")

    @property
    def locality(self) -> Locality | None:
        """How its states come apart for who learns from data what actions do; None where nobody said so."""
        return None

    def goal_features(self, states: Array) -> Callable[[Any], NDArray[np.integer[Any]]] | None:
        """What of states matters to a goal, as one number a state: equal numbers, equal verdicts (TEDUO's s_phi).

        It is prepared once for S states and then asked about each goal; it is None, unless a domain knows better, where
        all states differ.
        """
        return None

    def abstracted(self, states: Array, goal: Goal) -> Array:
        """States, (S, ...), with a goal in mind, same shape: what does not matter to it is left out (TEDUO, 3.1.1).

        Raises:
            DataError: Unless a domain has an abstraction.
        """
        raise DataError(f"the domain {self.name} does not say what of a state matters to a goal (Domain.abstracted)")

    @property
    def possible_facts(self) -> NDArray[np.int64]:
        """Everything that can be true of a state and that a goal can be about, shape (V, 3); none by default.

        A fact is a relation and what it holds between: (relation, first, second), where -1 is no second.
        """
        return np.zeros((0, 3), dtype=np.int64)

    def facts(self, states: Array) -> NDArray[np.int32]:
        """Which of the ``possible_facts`` are true of each of S states, shape (S, F); V fills what is left of a row."""
        return np.zeros((len(states), 0), dtype=np.int32)

    def draw(self, observation: Any, instruction: str = "", size: int = 256) -> NDArray[np.uint8]:
        """Picture of one observation, shape (size, size, 3), drawn without GL; by default it is written out."""
        from kalm.envs.drawing import write_page  # brings pillow

        return write_page(f"{instruction} {observation}", size)

    # --- the simulator ----------------------------------------------------------------------------------------------

    @abstractmethod
    def make_vector_env(self, num_envs: int, num_threads: int | None = None) -> DomainVectorEnv:
        """Many episodes at once; by default they are stepped on all cores."""

    def expert(self, env: DomainVectorEnv, goals: Sequence[Goal], luck: Sequence[np.random.Generator]) -> Act:
        """Who acts in a collection, in ``env``; each episode has its goal, and its luck for noise on its actions.

        Raises:
            DataError: Unless a domain has an expert.
        """
        raise DataError(f"the domain {self.name} has no expert to collect with; bring rollouts of your own")

    def collect(self, num_rollouts: int, seed: int, first: int = 0) -> Iterator[Rollout]:
        """Real rollouts ``first`` to ``num_rollouts - 1`` of the expert, see ``simulation.collect``."""
        return collect(self, num_rollouts, seed, first)

    @property
    def collection_settings(self) -> dict[str, Any]:
        """What else decides how ``collect`` collects, as plain JSON types; kept with the store."""
        return {}

    # --- shared by all domains --------------------------------------------------------------------------------------

    @property
    def spec(self) -> Spec:
        """What observations and actions are, for what knows no goals."""
        return spec_of_spaces(self.observation_space, self.action_space, self.entities, self.things)

    def instruction_for(self, goal: Goal) -> str:
        """The first built-in sentence for a goal; an empty one for a user's."""
        return self._instruction_for.get(goal, "")

    @cached_property
    def _instruction_for(self) -> dict[Goal, str]:
        rows = [row for split in self.learning_splits for row in self.instructed_goals(split)]
        return {row.goal: row.instruction for row in reversed(rows)}

    def label_rollout(
        self,
        instructed: InstructedGoal,
        observations: Array,
        actions: Array,
        source: Source,
        provenance: Mapping[str, Any] | None = None,
        ends_when_met: bool = True,
    ) -> Rollout:
        """Turn observations and actions into a rollout with the domain's own rewards and verdicts.

        A rollout at whose last step the goal holds is ``terminated`` there, any other one ``truncated``.

        Args:
            instructed: Goal and sentence the rollout was made for.
            observations: Shape (T + 1, O).
            actions: Shape (T,) or (T, A).
            source: Real or imaginary.
            provenance: Plain JSON types that say how the rollout was made.
            ends_when_met: Whether it is cut after the first step at which the goal holds, as the simulator would; if
                not, whoever made it decided where it ends, and the rule only says what it is worth.
        """
        goal = instructed.goal
        before, after = observations[:-1], observations[1:]
        success = goal.success(after, before, actions)
        is_success = bool(success.any())
        num_steps = int(success.argmax()) + 1 if is_success and ends_when_met else len(actions)
        ends_met = bool(success[:num_steps][-1:].any())
        before, actions, after = before[:num_steps], actions[:num_steps], after[:num_steps]
        is_last = np.arange(num_steps) == num_steps - 1
        return Rollout(
            goal=goal.to_json(),
            instruction=instructed.instruction,
            goal_split=instructed.goal_split,
            source=source,
            observations=observations[: num_steps + 1],
            actions=actions,
            rewards=goal.reward(before, actions, after).astype(np.float32),
            terminated=is_last & ends_met,
            truncated=is_last & (not ends_met),
            is_success=is_success,
            violations={flag: int(marked.sum()) for flag, marked in self.plausibility(before, actions, after).items()},
            provenance=dict(provenance or {}),
        )

    def load_instructed_goals(self, path: str | Path) -> list[InstructedGoal]:
        """Read a user's goals: JSON lines of ``{"goal": {...}, "instruction": "...", "goal_split": "rephrase"}``.

        Raises:
            DataError: If the file is missing or any line is malformed; every bad line is named at once.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(
                f"goals file {path} does not exist; write one JSON object a line with goal, instruction, goal_split"
            )
        goals, problems = [], []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                goals.append(self._instructed_goal(json.loads(line)))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
        if problems:
            raise DataError(f"goals file {path} is malformed:\n  " + "\n  ".join(problems))
        if not goals:
            raise DataError(f"goals file {path} holds no goals; write one JSON object a line")
        return goals

    def _instructed_goal(self, data: Any) -> InstructedGoal:
        if not isinstance(data, dict) or not {"goal", "instruction", "goal_split"} <= set(data):
            raise DataError(f"{data!r} is not an object with the keys goal, instruction and goal_split")
        instruction = data["instruction"]
        if not isinstance(instruction, str) or not instruction.strip():
            raise DataError(f"instruction is {instruction!r}; it must be a sentence")
        (split,) = self.check_goal_splits([data["goal_split"]])
        return InstructedGoal(self.goal_from_json(data["goal"]), instruction, split)
