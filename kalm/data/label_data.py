"""The data module of proxy rewards: goals, states and what a judge said of them, with states and goals held out.

Shape letters: B goals of a batch, N states of each, L tokens, E numbers of a token, S states of the store; ... what one
state is: F facts, or the grid itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from kalm.core.errors import DataError
from kalm.data.label_draws import LabelDraws
from kalm.data.labelled_goals import LabelledGoal, Part, Rows, labelled_goals, parts_of_states
from kalm.data.rollout_data import RolloutData
from kalm.data.rollout_sources import RealRollouts
from kalm.data.training_data import require_least
from kalm.envs.base import Domain
from kalm.language.encoder import SentenceEncoder
from kalm.store.labels import Labels, label_manifest

_MOST_EXAMINED = 20_000  # states of one goal


class StateForm(Enum):
    """What of a state is handed over."""

    facts = "facts"  # the domain's facts, int64
    grid = "grid"  # the observation itself


@dataclass(frozen=True, eq=False)
class Examined:
    """Everything that the judge said of a goal and of states of one part, and what is true."""

    goal: LabelledGoal
    is_known: bool
    batch: dict[str, Tensor]
    met: NDArray[np.bool_]
    truth: NDArray[np.bool_]


class _Once(IterableDataset[Examined]):
    """What an iterator yields, once."""

    def __init__(self, rows: Iterator[Examined]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Examined]:
        return self._rows


class LabelData(RolloutData):
    """A judge's labels for whoever learns to answer in its place; ``LabelDraws`` says what a batch holds."""

    reading_verbs = frozenset({"fit", "validate", "test", "predict"})

    def __init__(
        self,
        domain: Domain,
        encoder: SentenceEncoder,
        real: RealRollouts,
        label: str,
        form: StateForm = StateForm.facts,
        goals_per_batch: int = 32,
        states_per_goal: int = 32,
        max_goals: int | None = None,
        held_out_states: float = 0.2,
        held_out_goals: float = 0.1,
        seed: int = 0,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            domain: The world.
            encoder: Gives the vectors of an instruction's tokens.
            real: The store that was labelled, and which of its rollouts are used.
            label: Name of its label of goals and states.
            form: What of a state the model reads.
            goals_per_batch: Goals of one update, B; with ``max_goals`` those, in turn.
            states_per_goal: States of each, N.
            max_goals: Learn so many goals only, as many of each task; those that were met most often.
            held_out_states: Share of the rollouts whose states nothing is learned from: half of them choose the
                thresholds, half are tested on (paper: 0.1 of the states).
            held_out_goals: Share of the goals of each task that nothing is learned from.
            seed: Decides what is held out, and what each update gets.

        Raises:
            DataError: If a number is out of range.
        """
        super().__init__(locals())
        self._label, self._form, self._seed = label, form, seed
        self._goals_per_batch, self._states_per_goal, self.max_goals = goals_per_batch, states_per_goal, max_goals
        self._held_out = held_out_states, held_out_goals
        require_least(goals_per_batch=(goals_per_batch, 1), states_per_goal=(states_per_goal, 4))
        for name, share in (("held_out_states", held_out_states), ("held_out_goals", held_out_goals)):
            if not 0 <= share < 1 or (name == "held_out_states" and share == 0):
                raise DataError(f"{name} is {share}; it must be a share below 1, and of states above 0")

    def setup(self, stage: str) -> None:
        """Open the label, so that what is wrong with it shows at once."""
        if not self.learned_goals:
            raise DataError(f"label {self._label!r} of {self.real.path} says of no goal that is learned that it is met")

    @cached_property
    def labels(self) -> Labels:
        """What the judge wrote."""
        labels = self.store.labels(self._label)
        if labels.goal is None:
            raise DataError(f"label {self._label!r} of {self.real.path} is about rollouts; this learns from states")
        if labels.provenance.get("keep") == "met" and labels.provenance.get("max_states_per_goal") is not None:
            raise DataError(
                f"label {self._label!r} of {self.real.path} kept only what was met of some states; which were asked is "
                "lost. Label with keep: alike, or with max_states_per_goal: null"
            )
        return labels

    @cached_property
    def goals(self) -> list[LabelledGoal]:
        """Every goal that was asked about."""
        return labelled_goals(self.domain, self.labels)

    @cached_property
    def known_goals(self) -> list[LabelledGoal]:
        """Goals that are learned, met or not."""
        return [goal for goal in self.goals if goal.number not in self._new_goals]

    @cached_property
    def learned_goals(self) -> list[LabelledGoal]:
        """Those of them that some state to learn from meets; with ``max_goals``, the ones met most often."""
        met = [goal for goal in self.known_goals if len(self._of_part(goal.met, Part.training))]
        if self.max_goals is None:
            return met
        by_task: dict[str, list[LabelledGoal]] = {}
        for goal in sorted(met, key=lambda goal: -len(goal.met)):
            by_task.setdefault(goal.goal.task, []).append(goal)
        ranked = [(rank, task, goal) for task, goals in by_task.items() for rank, goal in enumerate(goals)]
        ranked.sort(key=lambda row: row[:2])
        return [goal for _, _, goal in ranked[: self.max_goals]]

    @cached_property
    def part_of(self) -> NDArray[np.int8]:
        """Part of each state, -1 for one that is not used, shape (S,)."""
        return parts_of_states(self._chosen, self._held_out[0], self._seed)

    @cached_property
    def draws(self) -> LabelDraws:
        """What the updates learn from."""
        return LabelDraws(self.known_goals, self.learned_goals, self.part_of, in_turn=self.max_goals is not None)

    def batch(self, index: int) -> dict[str, Tensor]:
        """Goals and states of update ``index``, a pure function of seed and index.

        Returns:
            ``goal`` (place among ``learned_goals``, -1 for one that was never met) of shape (B,), ``tokens`` (B, L, E),
            ``attention_mask`` (B, L), ``state`` (B, N, ...) and ``met``, bool of shape (B, N).
        """
        rng = np.random.default_rng([self._seed, index])
        chosen = [self.draws.draw_goal(rng, slot) for slot in range(self._goals_per_batch)]
        drawn = [self.draws.draw_states(rng, goal, self._states_per_goal) for goal in chosen]
        states, met = (np.stack(column) for column in zip(*drawn, strict=True))
        return {**self.sentences(chosen), "state": self.read(states), "met": torch.from_numpy(met)}

    def sentences(self, goals: list[LabelledGoal]) -> dict[str, Tensor]:
        """What is read of goals: ``goal``, ``tokens`` and ``attention_mask``."""
        tokens, attention_mask = self.encoder.token_vectors([goal.instruction for goal in goals])
        numbers = torch.tensor([self._places.get(goal.number, -1) for goal in goals])
        return {"goal": numbers, "tokens": tokens, "attention_mask": attention_mask}

    def read(self, states: Rows) -> Tensor:
        """What is read of states, rows of the store's of any shape: (..., F) or (..., W, H, C)."""
        if self._form is StateForm.facts:
            return self._facts[torch.from_numpy(states)]
        return torch.from_numpy(self.store.observations(torch.from_numpy(states)))

    def examined(self, part: Part, only_known: bool = False) -> Iterator[Examined]:
        """Each goal that is to be examined with the states of a part on which the judge spoke."""
        goals = self.learned_goals if self.max_goals is not None else self.known_goals
        if not only_known and self.max_goals is None:
            goals = self.goals
        yield from filter(None, (self.examine(goal, part) for goal in goals))

    def examine(self, goal: LabelledGoal, part: Part) -> Examined | None:
        """A goal with at most 20,000 states of a part on which the judge spoke; None if there is no such state."""
        unmet = goal.unmet
        if unmet is None:
            unmet = np.setdiff1d(np.flatnonzero(self.part_of == part.value), goal.met, assume_unique=True)
        states = np.concatenate([self._of_part(goal.met, part), self._of_part(unmet, part)])[:_MOST_EXAMINED]
        if not len(states):
            return None
        batch = {**self.sentences([goal]), "state": self.read(states[None])}
        truth = goal.goal.success(self.store.observations(torch.from_numpy(states)))
        return Examined(goal, goal.number not in self._new_goals, batch, np.isin(states, goal.met), truth)

    def test_dataloader(self) -> DataLoader[Examined]:
        """Each goal with the states that are tested on."""
        # A generator has no length, and does not keep what was examined.
        return DataLoader(_Once(self.examined(Part.test)), batch_size=None, collate_fn=lambda row: row)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """What is examined is moved by whoever examines it."""
        if isinstance(batch, Examined):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    @property
    def description(self) -> dict[str, Any]:
        """Whose labels these are, in plain JSON types; kept with what learned them."""
        return {"label": self._label, "label_sha256": self._label_sha256, "labels_by": dict(self.labels.provenance)}

    @property
    def found(self) -> dict[str, Any]:
        """Also what the label says."""
        return {**super().found, "label_sha256": self._label_sha256}

    @cached_property
    def _label_sha256(self) -> str:
        return hashlib.sha256(label_manifest(Path(self.real.path), self._label)).hexdigest()

    @cached_property
    def _facts(self) -> Tensor:
        facts = self.domain.facts(self.store.observations(torch.arange(self.store.num_states)))
        if not facts.shape[1]:
            raise DataError(f"the domain {self.domain.name} knows no facts of its states; set form: grid")
        return torch.from_numpy(facts)

    @cached_property
    def _new_goals(self) -> set[int]:
        """Numbers of the goals that nothing is learned from."""
        rng = np.random.default_rng([self._seed, 2])
        by_task: dict[str, list[int]] = {}
        for goal in self.goals:
            by_task.setdefault(goal.goal.task, []).append(goal.number)
        return {
            int(number)
            for _, numbers in sorted(by_task.items())
            for number in rng.permutation(numbers)[: int(self._held_out[1] * len(numbers))]
        }

    @cached_property
    def _places(self) -> dict[int, int]:
        return {goal.number: place for place, goal in enumerate(self.learned_goals)}

    def _of_part(self, states: Rows, part: Part) -> Rows:
        return states[self.part_of[states] == part.value]
