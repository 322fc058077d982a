"""Cuts the rollouts of one grounding task into batches, each a pure function of its index.

An epoch shows every rollout once. Rollouts with the same prompt share a row until the row is full, and rows of nearly
equal length share a batch, so that neither prompts nor padding take up much of the work.

Shape letters: R rollouts of a batch, n their steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kalm.core import names
from kalm.data.grounding_batch import GroundingBatch, GroundingTask
from kalm.data.joined_rollouts import JoinedRollouts
from kalm.data.returns import returns_to_go
from kalm.data.symmetry import RelabelledNumbers, RelabelledTexts
from kalm.data.task_texts import TaskTexts
from kalm.envs.symmetry import Symmetry

_PROMPT_STREAM = 1


class _Place(NamedTuple):
    """The rollouts of one batch; every array of shape (R,).

    Attributes:
        rollout: Which of the rollouts in use.
        group: The group it shares a prompt with.
        prompt: What it is behind, a number of ``RelabelledTexts.distinct``.
        relabelling: Which relabelling it is shown under.
        skipped: Steps of its beginning that are left out.
    """

    rollout: NDArray[np.int64]
    group: NDArray[np.int64]
    prompt: NDArray[np.int64]
    relabelling: NDArray[np.int64]
    skipped: NDArray[np.int64]


class TaskBatches:
    """Batch i of one task, for every i >= 0."""

    def __init__(
        self,
        rollouts: JoinedRollouts,
        task: GroundingTask,
        texts: TaskTexts,
        rollouts_per_batch: int,
        tokens_per_prompt: int,
        crop_probability: float,
        relabellings: Sequence[Symmetry],
        seed: Sequence[int],
    ) -> None:
        """Describe the batches; none is made yet.

        Args:
            rollouts: The rollouts to use.
            task: What they are for.
            texts: Their prompts and answers, in the order of ``rollouts``.
            rollouts_per_batch: Rollouts of a batch, up to a group more or less.
            tokens_per_prompt: Most tokens of the rollouts that share a prompt; a longer rollout has it alone.
            crop_probability: How often a rollout is shown from a random later step on.
            relabellings: Each time a rollout is shown, it is shown under one of these, drawn at random; empty shows
                it as it was recorded.
            seed: Numbers that decide the order.
        """
        self._rollouts, self._task = rollouts, task
        self._answers = list(texts.answers)
        self._texts = RelabelledTexts([prompt for own in texts.prompts for prompt in own], relabellings)
        self._num_prompts = np.array([len(own) for own in texts.prompts])
        self._first_prompt = self._num_prompts.cumsum() - self._num_prompts
        # About as many: punctuation is not counted. It decides grouping, not content.
        num_answer_tokens = np.array([len(answer.split()) for answer in self._answers])
        self._num_tokens = 2 * rollouts.lengths + 1 + num_answer_tokens
        self._tokens_per_prompt, self._crop_probability = tokens_per_prompt, crop_probability
        self._relabellings = list(relabellings)
        self._numbers = RelabelledNumbers(relabellings)
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
        relabelling = rng.integers(len(self._relabellings), size=len(shuffled)) if self._relabellings else 0 * shuffled
        # Drawn apart, so that how many prompts there are decides nothing else.
        drawn = np.random.default_rng([*self._seed, epoch, _PROMPT_STREAM]).integers(self._num_prompts[shuffled])
        text = self._first_prompt[shuffled] + drawn
        prompt = self._texts.numbers_of(text, relabelling)
        order = np.argsort(prompt, kind="stable")
        chosen, relabelling, prompt = shuffled[order], relabelling[order], prompt[order]
        group = self._group(chosen, prompt)
        batches = np.array_split(rng.permutation(group[-1] + 1), self._num_batches)
        batch_of_group = np.empty(group[-1] + 1, dtype=np.int64)
        for place, groups in enumerate(batches):
            batch_of_group[groups] = place
        is_cropped = rng.random(len(chosen)) < self._crop_probability
        skipped = np.where(is_cropped, rng.integers(self._rollouts.lengths[chosen]), 0)
        by_batch = [np.flatnonzero(batch_of_group[group] == place) for place in range(self._num_batches)]
        return [_Place(chosen[r], group[r], prompt[r], relabelling[r], skipped[r]) for r in by_batch]

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
        lengths = torch.from_numpy(self._rollouts.lengths[place.rollout] - place.skipped)
        last = lengths.cumsum(0) - 1
        keys = (names.OBSERVATION, names.ACTION, names.NEXT_OBSERVATION, names.TERMINATED, names.REWARD)
        columns = self._rollouts.read(keys, place.rollout, place.skipped)
        observation, action, next_observation, terminated, reward = columns
        if self._relabellings:
            relabelling = torch.from_numpy(place.relabelling).repeat_interleave(lengths)
            observation = self._numbers.observation(observation, relabelling)
            next_observation = self._numbers.observation(next_observation, relabelling)
            action = self._numbers.action(action, relabelling)
        return GroundingBatch(
            prompts=[self._texts.distinct[prompt] for prompt in place.prompt[first]],
            prompt_of_rollout=torch.from_numpy(prompt_of_rollout),
            task=torch.full_like(lengths, int(self._task)),
            lengths=lengths,
            observation=observation,
            action=action,
            next_observation=next_observation,
            final_observation=next_observation[last],
            is_terminated=terminated[last],
            return_to_go=returns_to_go(reward, lengths),
            answers=self._answers_of(place),
        )

    def _answers_of(self, place: _Place) -> list[str]:
        answers = [self._answers[index] for index in place.rollout]
        if not self._relabellings:
            return answers
        return [self._relabellings[k].text(answer) for k, answer in zip(place.relabelling, answers, strict=True)]
