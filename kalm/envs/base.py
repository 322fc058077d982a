"""The Domain contract: everything that KALM needs to know about a world, and nothing about learning.

A domain is spaces, goals in named splits with their sentences, a simulator with an expert, and what can be told of any
step without one: which are implausible, which symmetries the world has. When a goal is met and what a step is worth,
the goal itself says (``kalm.core.goal``).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from kalm.envs.simulation import Act, collect
from kalm.envs.symmetry import Symmetry

if TYPE_CHECKING:
    from kalm.envs.locality import Locality
    from kalm.envs.vector_env import DomainVectorEnv


class Domain(ABC):
    """A world as KALM sees it. Subclass it in one package under ``kalm/envs/``, or anywhere else, to add a world.

    Attributes:
        name: Folder name under ``checkpoints/`` and ``conf/``, for example ``clevr_robot``.
        goal_splits: Names of the splits that policies are evaluated on, in the order of tables. The first is the one
            that real rollouts are collected for; how new the others are to a learner is the domain's to say.
        goal_class: What all its goals are.
        sentences_from: Splits that have the sentences of another one, which they differ from in something else, such
            as the place: that other one, by name. No two others share a sentence.
        unseen_splits: Splits that have the goals of another one in sentences that are kept for the test: that other
            one, by name. Nothing imagines, labels, trains or validates on them, see ``learning_splits``.
        observation_space: What is seen, a Gymnasium space of any kind.
        action_space: What can be done, another.
        plausibility_flags: Names of the ways in which a transition can be implausible.
        render_fps: Pictures a second that show the world at its own speed.
    """

    name: ClassVar[str]
    goal_splits: ClassVar[tuple[str, ...]] = ("train",)
    sentences_from: ClassVar[Mapping[str, str]] = {}
    unseen_splits: ClassVar[Mapping[str, str]] = {}
    goal_class: ClassVar[type[Any]]
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    plausibility_flags: ClassVar[tuple[str, ...]] = ()
    render_fps: ClassVar[int] = 4

    # --- goals ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def instructed_goals(self, goal_split: str) -> list[InstructedGoal]:
        """Every built-in instruction of a split, always in the same order."""

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
        """Other sentences for a training instruction, which training may show; no pattern or synonym is the tests'."""
        return ()

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

    @property
    def training_split(self) -> str:
        """The split that real rollouts are collected for."""
        return self.goal_splits[0]

    @property
    def told_splits(self) -> tuple[str, ...]:
        """The splits whose sentences are told in training."""
        first = self.training_split
        return tuple(split for split in self.goal_splits if self.sentences_from.get(split, split) == first)

    @property
    def learning_splits(self) -> tuple[str, ...]:
        """The splits that whatever comes before the test may look at: all but those of unseen sentences."""
        return tuple(split for split in self.goal_splits if split not in self.unseen_splits)

    def instruction_for(self, goal: Goal) -> str:
        """The first built-in sentence for a goal; an empty one for a user's."""
        return self._instruction_for.get(goal, "")

    @cached_property
    def _instruction_for(self) -> dict[Goal, str]:
        rows = [row for split in self.learning_splits for row in self.instructed_goals(split)]
        return {row.goal: row.instruction for row in reversed(rows)}

    def check_goal_splits(self, goal_splits: Sequence[str] | None) -> list[str]:
        """Names of splits that this domain has; all of them for None.

        Raises:
            DataError: If a name is unknown or none is given; the message lists the known ones.
        """
        chosen = list(self.goal_splits if goal_splits is None else goal_splits)
        unknown = [split for split in chosen if split not in self.goal_splits]
        if unknown or not chosen:
            raise DataError(
                f"goal_splits: {', '.join(map(repr, unknown)) or 'none named'}; the splits are "
                f"{', '.join(self.goal_splits)}"
            )
        return chosen

    def check_learning_splits(self, goal_splits: Sequence[str] | None) -> list[str]:
        """Names of splits that may be looked at before the test; all of those for None.

        Raises:
            DataError: If a name is unknown or none is given, or if the sentences of a split are kept for the test.
        """
        chosen = self.check_goal_splits(self.learning_splits if goal_splits is None else goal_splits)
        if kept := [split for split in chosen if split in self.unseen_splits]:
            raise DataError(
                f"goal_splits: the sentences of {', '.join(map(repr, kept))} are kept for the test; before it only "
                f"{', '.join(self.learning_splits)} may be imagined, labelled, trained or validated on"
            )
        return chosen

    def kept_for_the_test(self, told: Iterable[tuple[str, str]]) -> list[str]:
        """Which of these sentences, each with its split, only a test may show, as problems to raise."""
        return [
            f"{sentence!r} of the split {split!r} is kept for the test"
            for sentence, split in told
            if split in self.unseen_splits or sentence.casefold() in self._unseen_sentences
        ]

    @cached_property
    def _unseen_sentences(self) -> frozenset[str]:
        rows = (row for split in self.unseen_splits for row in self.instructed_goals(split))
        return frozenset(row.instruction.casefold() for row in rows)

    def label_rollout(
        self,
        instructed: InstructedGoal,
        observations: Array,
        actions: Array,
        source: Source,
        provenance: Mapping[str, Any] | None = None,
    ) -> Rollout:
        """Turn observations and actions into a rollout with the domain's own rewards and verdicts.

        The rollout is cut after the first step at which the goal holds; that step is ``terminated``. A rollout that
        never meets its goal is ``truncated`` at its last step.

        Args:
            instructed: Goal and sentence the rollout was made for.
            observations: Shape (T + 1, O).
            actions: Shape (T,) or (T, A).
            source: Real or imaginary.
            provenance: Plain JSON types that say how the rollout was made.
        """
        goal = instructed.goal
        before, after = observations[:-1], observations[1:]
        success = goal.success(after, before, actions)
        is_success = bool(success.any())
        num_steps = int(success.argmax()) + 1 if is_success else len(actions)
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
            terminated=is_last & is_success,
            truncated=is_last & (not is_success),
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
