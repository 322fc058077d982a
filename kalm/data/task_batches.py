"""Cuts the rollouts of one grounding task into batches, each a pure function of its index.

An epoch shows every rollout once. Rollouts with the same prompt share a row until the row is full, and rows of nearly
equal length share a batch, so that neither prompts nor padding take up much of the work.

Shape letters: R rollouts of a batch, n their steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from kalm import types
from kalm.data.grounding_batch import GroundingBatch, GroundingTask
from kalm.data.store import RolloutStore


class TaskBatches:
    """Batch i of one task, for every i >= 0."""

    def __init__(
        self,
        store: RolloutStore,
        rollouts: NDArray[np.int64],
        task: GroundingTask,
        prompts: Sequence[str],
        answers: Sequence[str],
        num_answer_tokens: Sequence[int],
        rollouts_per_batch: int,
        tokens_per_prompt: int,
        crop_probability: float,
        seed: Sequence[int],
    ) -> None:
        """Describe the batches; none is made yet.

        Args:
            store: Where the rollouts lie.
            rollouts: Rows of ``store.rollouts`` to use.
            task: What they are for.
            prompts: Prompt of each rollout, in the order of ``rollouts``.
            answers: Text to be written behind each; empty but for explanation.
            num_answer_tokens: About how many tokens each answer has; decides grouping, not content.
            rollouts_per_batch: Rollouts of a batch, up to a group more or less.
            tokens_per_prompt: Most tokens of the rollouts that share a prompt; a longer rollout has it alone.
            crop_probability: How often a rollout is shown from a random later step on.
            seed: Numbers that decide the order.
        """
        self._store, self._task = store, task
        self._rollouts = rollouts
        self._answers = list(answers)
        self._prompts = list(dict.fromkeys(prompts))
        index_of = {prompt: index for index, prompt in enumerate(self._prompts)}
        self._prompt_of = np.array([index_of[prompt] for prompt in prompts])
        self._lengths = store.rollouts["length"].numpy()[rollouts].astype(np.int64)
        self._num_tokens = 2 * self._lengths + 1 + np.asarray(num_answer_tokens)
        self._tokens_per_prompt, self._crop_probability = tokens_per_prompt, crop_probability
        self._seed = tuple(seed)
        # Two neighbouring groups of a prompt have more tokens than one may have, whatever the order.
        totals = np.bincount(self._prompt_of, weights=self._num_tokens)
        least_groups = int(np.maximum(1, totals // tokens_per_prompt).sum())
        self._num_batches = max(1, min(round(len(rollouts) / rollouts_per_batch), (least_groups + 1) // 2))
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def __call__(self, index: int) -> GroundingBatch:
        """Batch ``index``: place ``index % n`` of epoch ``index // n``, n being the batches of an epoch."""
        epoch, place = divmod(index, self._num_batches)
        chosen, group, skipped = self._epoch(epoch)[place]
        _, first, prompt_of_rollout = np.unique(group, return_index=True, return_inverse=True)
        prompts = [self._prompts[prompt] for prompt in self._prompt_of[chosen[first]]]
        return self._read(chosen, skipped, prompts, prompt_of_rollout)

    def _make_epoch(self, epoch: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
        """For each batch of an epoch: its rollouts, the group of each, and how many steps of each are left out."""
        rng = np.random.default_rng([*self._seed, epoch])
        shuffled = rng.permutation(len(self._rollouts))
        chosen = shuffled[np.argsort(self._prompt_of[shuffled], kind="stable")]
        group = self._group(chosen)
        batches = np.array_split(rng.permutation(group[-1] + 1), self._num_batches)
        batch_of_group = np.empty(group[-1] + 1, dtype=np.int64)
        for place, groups in enumerate(batches):
            batch_of_group[groups] = place
        is_cropped = rng.random(len(chosen)) < self._crop_probability
        skipped = np.where(is_cropped, rng.integers(self._lengths[chosen]), 0)
        by_batch = [np.flatnonzero(batch_of_group[group] == place) for place in range(self._num_batches)]
        return [(chosen[rows], group[rows], skipped[rows]) for rows in by_batch]

    def _group(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Group of each rollout: those of one prompt in a row, as many as its tokens allow."""
        group, last_prompt, used = -1, -1, 0
        groups = []
        for prompt, tokens in zip(self._prompt_of[chosen].tolist(), self._num_tokens[chosen].tolist(), strict=True):
            if prompt != last_prompt or used + tokens > self._tokens_per_prompt:
                group, last_prompt, used = group + 1, prompt, 0
            used += tokens
            groups.append(group)
        return np.array(groups)

    def _read(
        self,
        chosen: NDArray[np.int64],
        skipped: NDArray[np.int64],
        prompts: list[str],
        prompt_of_rollout: NDArray[np.intp],
    ) -> GroundingBatch:
        starts = self._store.rollouts["start"][self._rollouts[chosen]] + torch.from_numpy(skipped)
        lengths = torch.from_numpy(self._lengths[chosen] - skipped)
        ends = lengths.cumsum(0)
        steps = torch.arange(int(ends[-1])) + (starts - (ends - lengths)).repeat_interleave(lengths)
        transitions = self._store.transitions
        next_observation = transitions[types.NEXT_OBSERVATION][steps]
        return GroundingBatch(
            prompts=prompts,
            prompt_of_rollout=torch.from_numpy(prompt_of_rollout),
            task=torch.full_like(lengths, int(self._task)),
            lengths=lengths,
            observation=transitions[types.OBSERVATION][steps],
            action=transitions[types.ACTION][steps],
            next_observation=next_observation,
            final_observation=next_observation[ends - 1],
            is_terminated=transitions[types.TERMINATED][steps[ends - 1]],
            answers=[self._answers[index] for index in chosen],
        )
