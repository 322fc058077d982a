"""States behind sentences that ask for several goals at once: what is left to do, and what has been done.

A model that writes its own sub-goals must take a sentence apart and see which part is met. Data that hold one goal a
rollout teach both, with no rule: where a rollout begins its goal is not met yet, where it ends it is. So two or three
goals of the data are put into one sentence (``Domain.composed``) before a state at which one of them begins or ends.
Of the other goals nothing is known; by chance one may be met already, which makes a few answers wrong.

Shape letters: R states of a batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core import names
from kalm.core.errors import DataError
from kalm.data.language_batches import GroundingBatch, GroundingTask, batch_states
from kalm.data.selection import Selection
from kalm.data.symmetry import SymmetricNumbers, SymmetricTexts
from kalm.envs.base import Domain
from kalm.envs.symmetry import Symmetry
from kalm.language.prompts import generation_prompt, sub_goal_prompt

_MOST_PARTS = 3
# Sentences that are composed, once and for all: an encoder reads each new one, which costs more than learning from it.
_NUM_SENTENCES = 2000
_TRIES_A_SENTENCE = 20


class _Composed(NamedTuple):
    """A sentence and the goals that it asks for, in its order, as numbers of their answers."""

    sentence: str
    parts: list[int]


class SubGoalBatches:
    """Batch i of sub-goals, for every i >= 0: a pure function of seed and i.

    Half of its states stand behind a composed sentence, with the part to pursue as the answer: the first that is not
    known to be met. The other half stands behind the one goal's own sentence, to be told apart by the end head.
    """

    def __init__(
        self,
        domain: Domain,
        rollouts: Selection,
        answers: Sequence[str],
        size: int,
        symmetries: Sequence[Symmetry],
        seed: Sequence[int],
    ) -> None:
        """Compose the sentences.

        Args:
            domain: Says how several goals are asked for at once.
            rollouts: Rollouts of goals; those count that were recorded as ended by success.
            answers: How each one's goal is asked for, in one way a goal.
            size: States a batch, R.
            symmetries: Under which rollouts are shown; empty shows them as they were recorded.
            seed: Numbers that decide the sentences and the order.

        Raises:
            DataError: If the domain composes none of its goals.
        """
        last = rollouts.starts + rollouts.lengths - 1
        (is_ended,) = rollouts.read((names.TERMINATED,), last)
        rollouts = rollouts.keep(is_ended)
        answers = [answer for answer, ended in zip(answers, is_ended.tolist(), strict=True) if ended]
        self._rollouts, self._size, self._seed = rollouts, size, tuple(seed)
        self._symmetries, self._numbers = list(symmetries), SymmetricNumbers(symmetries)
        self._instructions = [row.instruction for row in rollouts.instruction_rows]
        # How to show a rollout so that its goal is a wanted one: under which symmetry, and which rollouts.
        texts = SymmetricTexts(answers, symmetries)
        self._answers = texts.distinct
        kinds = list(dict.fromkeys(answers))
        self._rollouts_of_kind = [np.flatnonzero(np.array(answers) == kind) for kind in kinds]
        first_of_kind = np.array([rollouts[0] for rollouts in self._rollouts_of_kind])
        self._number = texts.numbers_of(first_of_kind[None], np.arange(max(1, len(symmetries)))[:, None])  # (L, kinds)
        self._composed = self._compose(domain, kinds)

    def __call__(self, index: int) -> GroundingBatch:
        """Batch ``index``."""
        rng = np.random.default_rng([*self._seed, index])
        items = [self._item(rng, is_composed=place % 2 == 0) for place in range(self._size)]
        prompts, tasks, answers, places, symmetry, at_end = (list(column) for column in zip(*items, strict=True))
        observation = self._states(np.array(places), np.array(symmetry), np.array(at_end))
        (no_action,) = self._rollouts.read((names.ACTION,), torch.zeros(0, dtype=torch.int64))
        batch = batch_states(observation, prompts, GroundingTask.SUB_GOAL, no_action, answers)
        return batch._replace(task=torch.tensor(tasks), is_terminated=torch.tensor(at_end))

    def _item(self, rng: np.random.Generator, is_composed: bool) -> tuple[str, int, str, int, int, bool]:
        """Prompt, task, answer; a rollout, its symmetry, and whether its last state is shown, or its first."""
        sentence, parts = self._composed[int(rng.integers(len(self._composed)))]
        own = parts[int(rng.integers(len(parts)))]
        at_end = bool(rng.integers(2))
        ways = np.argwhere(self._number == own)
        symmetry, kind = ways[int(rng.integers(len(ways)))]
        some = self._rollouts_of_kind[kind]
        place = int(some[int(rng.integers(len(some)))])
        if is_composed:
            left = next(part for part in parts if not (at_end and part == own))
            return sub_goal_prompt(sentence), GroundingTask.SUB_GOAL, self._answers[left], place, int(symmetry), at_end
        told = self._instructions[place]
        told = self._symmetries[symmetry].text(told) if self._symmetries else told
        return generation_prompt(told), GroundingTask.GENERATION, "", place, int(symmetry), at_end

    def _states(
        self, places: NDArray[np.int64], symmetry: NDArray[np.int64], at_end: NDArray[np.bool_]
    ) -> torch.Tensor:
        """First or last observations of rollouts, shape (R, O)."""
        chosen, ends = torch.from_numpy(places), torch.from_numpy(at_end)
        first = self._rollouts.starts[chosen]
        last = first + self._rollouts.lengths[chosen] - 1
        (before,) = self._rollouts.read((names.OBSERVATION,), first)
        (after,) = self._rollouts.read((names.NEXT_OBSERVATION,), last)
        observation = torch.where(ends[:, None], after, before)
        return self._numbers.observation(observation, torch.from_numpy(symmetry)) if self._symmetries else observation

    def _compose(self, domain: Domain, kinds: Sequence[str]) -> list[_Composed]:
        rows = self._rollouts.instruction_rows
        goals = [domain.goal_from_json(rows[rollouts[0]].goal) for rollouts in self._rollouts_of_kind]
        number_of = {text: number for number, text in enumerate(self._answers)}
        rng, found = np.random.default_rng(self._seed), []
        for _ in range(_TRIES_A_SENTENCE * _NUM_SENTENCES):
            most = min(_MOST_PARTS, len(goals))
            some = rng.choice(len(goals), int(rng.integers(min(2, most), most + 1)), replace=False)
            sentence = domain.composed([goals[kind] for kind in some], rng)
            if sentence is not None:
                found.append(_Composed(sentence, [number_of[kinds[kind]] for kind in some]))
            if len(found) == _NUM_SENTENCES:
                break
        if not found:
            raise DataError(
                f"tasks.sub_goal asks for sentences of several goals, but the domain {domain.name} composes none of "
                f"the {len(goals)} goals of its rollouts, such as {json.dumps(rows[0].goal)}; set it to 0"
            )
        return found
