"""What a grounding task shows: its rollouts cut into batches, each a pure function of its index; and its texts.

An epoch shows every rollout once. Rollouts with the same prompt share a row until the row is full, and rows of nearly
equal length share a batch, so that neither prompts nor padding take up much of the work.

Shape letters: R rollouts of a batch, n their steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core import names
from kalm.data.described_steps import DescribedSteps
from kalm.data.language_batches import GroundingBatch, GroundingTask
from kalm.data.selection import Selection, returns_to_go
from kalm.data.symmetry import SymmetricNumbers, SymmetricTexts
from kalm.envs.symmetry import Symmetry
from kalm.language.prompts import generation_prompt
from kalm.store.reader import InstructionRow

_PROMPT_STREAM = 1


class _Place(NamedTuple):
    """The rollouts of one batch; every array of shape (R,)."""

    rollout: NDArray[np.int64]  # which of the rollouts in use
    group: NDArray[np.int64]  # with which it shares a prompt
    prompt: NDArray[np.int64]  # what it is behind, a number of ``SymmetricTexts.distinct``
    symmetry: NDArray[np.int64]  # under which it is shown
    skipped: NDArray[np.int64]  # steps of its beginning that are left out


class TaskBatches:
    """Batch i of one task, for every i >= 0."""

    def __init__(
        self,
        rollouts: Selection | DescribedSteps,
        task: GroundingTask,
        prompts: Sequence[Sequence[str]],
        answers: Sequence[str] | None,
        rollouts_per_batch: int,
        tokens_per_prompt: int,
        crop_probability: float,
        symmetries: Sequence[Symmetry],
        seed: Sequence[int],
    ) -> None:
        """Describe the batches; none is made yet.

        Args:
            rollouts: The rollouts to use.
            task: What they are for.
            prompts: The prompts of each; it is shown behind a random one of them each time.
            answers: Text to be written behind each; None has none.
            rollouts_per_batch: Rollouts of a batch, up to a group more or less.
            tokens_per_prompt: Most tokens of the rollouts that share a prompt; a longer rollout has it alone.
            crop_probability: How often a rollout is shown from a random later step on.
            symmetries: Each time a rollout is shown, it is shown under one of these, drawn at random; empty shows
                it as it was recorded.
            seed: Numbers that decide the order.
        """
        self._rollouts, self._task = rollouts, task
        self._answers = [""] * len(rollouts) if answers is None else list(answers)
        self._texts = SymmetricTexts([prompt for own in prompts for prompt in own], symmetries)
        self._num_prompts = np.array([len(own) for own in prompts])
        self._first_prompt = self._num_prompts.cumsum() - self._num_prompts
        # About as many: punctuation is not counted. It decides grouping, not content.
        num_answer_tokens = np.array([len(answer.split()) for answer in self._answers])
        self._lengths = rollouts.lengths.numpy()
        self._num_tokens = 2 * self._lengths + 1 + num_answer_tokens
        self._tokens_per_prompt, self._crop_probability = tokens_per_prompt, crop_probability
        self._symmetries = list(symmetries)
        self._numbers = SymmetricNumbers(symmetries)
        self._seed = tuple(seed)
        # However prompts fall, a group holds no more than its share of tokens, or one rollout that is longer.
        least_groups = int(np.minimum(self._num_tokens, tokens_per_prompt).sum()) // tokens_per_prompt
        self._num_batches = max(1, min(round(len(rollouts) / rollouts_per_batch), least_groups))
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def __call__(self, index: int) -> GroundingBatch:
        """Batch ``index``: place ``index % n`` of epoch ``index // n``, n being the batches of an epoch."""
        epoch, place = divmod(index, self._num_batches)
        return self._read(self._epoch(epoch)[place])

    def _make_epoch(self, epoch: int) -> list[_Place]:
        """What each batch of an epoch shows."""
        rng = np.random.default_rng([*self._seed, epoch])
        shuffled = rng.permutation(len(self._rollouts))
        symmetry = rng.integers(len(self._symmetries), size=len(shuffled)) if self._symmetries else 0 * shuffled
        # Drawn apart, so that how many prompts there are decides nothing else.
        drawn = np.random.default_rng([*self._seed, epoch, _PROMPT_STREAM]).integers(self._num_prompts[shuffled])
        text = self._first_prompt[shuffled] + drawn
        prompt = self._texts.numbers_of(text, symmetry)
        order = np.argsort(prompt, kind="stable")
        chosen, symmetry, prompt = shuffled[order], symmetry[order], prompt[order]
        group = self._group(chosen, prompt)
        batches = np.array_split(rng.permutation(group[-1] + 1), self._num_batches)
        batch_of_group = np.empty(group[-1] + 1, dtype=np.int64)
        for place, groups in enumerate(batches):
            batch_of_group[groups] = place
        is_cropped = rng.random(len(chosen)) < self._crop_probability
        skipped = np.where(is_cropped, rng.integers(self._lengths[chosen]), 0)
        by_batch = [np.flatnonzero(batch_of_group[group] == place) for place in range(self._num_batches)]
        return [_Place(chosen[r], group[r], prompt[r], symmetry[r], skipped[r]) for r in by_batch]

    def _group(self, chosen: NDArray[np.int64], prompts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Group of each rollout: those of one prompt in a row, as many as its tokens allow."""
        group, last_prompt, used = -1, -1, 0
        groups = []
        for prompt, tokens in zip(prompts.tolist(), self._num_tokens[chosen].tolist(), strict=True):
            if prompt != last_prompt or used + tokens > self._tokens_per_prompt:
                group, last_prompt, used = group + 1, prompt, 0
            used += tokens
            groups.append(group)
        return np.array(groups)

    def _read(self, place: _Place) -> GroundingBatch:
        _, first, prompt_of_rollout = np.unique(place.group, return_index=True, return_inverse=True)
        chosen, skipped = torch.from_numpy(place.rollout), torch.from_numpy(place.skipped)
        lengths = self._rollouts.lengths[chosen] - skipped
        last = lengths.cumsum(0) - 1
        keys = (names.OBSERVATION, names.ACTION, names.NEXT_OBSERVATION, names.TERMINATED, names.REWARD)
        columns = dict(zip(keys, self._rollouts.read(keys, self._rollouts.rows(chosen, skipped)), strict=True))
        answers = [self._answers[rollout] for rollout in place.rollout]
        if self._symmetries:
            symmetry = torch.from_numpy(place.symmetry).repeat_interleave(lengths)
            columns = self._numbers.transitions(columns, symmetry)
            answers = [self._symmetries[k].text(answer) for k, answer in zip(place.symmetry, answers, strict=True)]
        return GroundingBatch(
            prompts=[self._texts.distinct[prompt] for prompt in place.prompt[first]],
            prompt_of_rollout=torch.from_numpy(prompt_of_rollout),
            task=torch.full_like(lengths, int(self._task)),
            lengths=lengths,
            observation=columns[names.OBSERVATION],
            action=columns[names.ACTION],
            next_observation=columns[names.NEXT_OBSERVATION],
            final_observation=columns[names.NEXT_OBSERVATION][last],
            is_terminated=columns[names.TERMINATED][last],
            return_to_go=returns_to_go(columns[names.REWARD], lengths),
            answers=answers,
        )


def generation_prompts(rollouts: Selection) -> list[list[str]]:
    """Goal in, rollout out: the prompt holds the rollout's own instruction."""
    return [[generation_prompt(row.instruction)] for row in rollouts.instruction_rows]


def shortest_instructions(
    table: Sequence[InstructionRow], rows: Sequence[InstructionRow], training_split: str
) -> list[str]:
    """For each of ``rows`` the shortest instruction of the training split that ``table`` has for its goal."""
    key = partial(json.dumps, sort_keys=True)
    shortest: dict[str, str] = {}
    of_training = (row for row in table if row.goal_split == training_split)
    for row in sorted(of_training, key=lambda row: (len(row.instruction), row.instruction)):
        shortest.setdefault(key(row.goal), row.instruction)
    return [shortest[key(row.goal)] for row in rows]
