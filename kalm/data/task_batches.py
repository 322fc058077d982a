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
from kalm.data.grounding_batch import TaskBatch
from kalm.data.store import RolloutStore

_MIXED_TOKENS = 8  # rows that differ by fewer tokens than this are mixed freely


class TaskBatches:
    """Batch i of one task, for every i >= 0."""

    def __init__(
        self,
        store: RolloutStore,
        rollouts: NDArray[np.int64],
        prompts: Sequence[str],
        answers: Sequence[str],
        num_answer_tokens: Sequence[int],
        rollouts_per_batch: int,
        tokens_per_row: int,
        seed: Sequence[int],
    ) -> None:
        """Describe the batches; none is made yet.

        Args:
            store: Where the rollouts lie.
            rollouts: Rows of ``store.rollouts`` to use.
            prompts: Prompt of each rollout, in the order of ``rollouts``.
            answers: Text to be written for each; empty for tasks without text.
            num_answer_tokens: About how many tokens each answer has (0 without); decides padding, not content.
            rollouts_per_batch: Rollouts of a batch, up to a row more or less.
            tokens_per_row: A row takes another rollout while it has fewer tokens than this.
            seed: Numbers that decide the order.
        """
        self._store = store
        self._rollouts = rollouts
        self._answers = list(answers)
        self._prompts = list(dict.fromkeys(prompts))
        index_of = {prompt: index for index, prompt in enumerate(self._prompts)}
        self._prompt_of = np.array([index_of[prompt] for prompt in prompts])
        self._num_tokens = 2 * store.rollouts["length"].numpy()[rollouts] + 1 + np.asarray(num_answer_tokens)
        self._tokens_per_row = tokens_per_row
        self._seed = tuple(seed)
        self._num_batches = max(1, round(len(rollouts) / rollouts_per_batch))
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def __call__(self, index: int) -> TaskBatch:
        """Batch ``index``: place ``index % n`` of epoch ``index // n``, n being the batches of an epoch."""
        epoch, place = divmod(index, self._num_batches)
        chosen, row = self._epoch(epoch)[place]
        order = np.argsort(row, kind="stable")
        chosen, row = chosen[order], row[order]
        rows, prompt_of_rollout = np.unique(row, return_inverse=True)
        first = np.searchsorted(row, rows)
        return self._read(chosen, [self._prompts[self._prompt_of[chosen[place]]] for place in first], prompt_of_rollout)

    def _make_epoch(self, epoch: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """For each batch of an epoch, which rollouts it has and which row each is in."""
        rng = np.random.default_rng([*self._seed, epoch])
        shuffled = rng.permutation(len(self._rollouts))
        chosen = shuffled[np.argsort(self._prompt_of[shuffled], kind="stable")]
        tokens, prompt = self._num_tokens[chosen], self._prompt_of[chosen]
        before = np.cumsum(tokens) - tokens
        begins = np.r_[True, prompt[1:] != prompt[:-1]]
        before -= np.maximum.accumulate(np.where(begins, before, 0))  # tokens of the same prompt before each rollout
        fill = before // self._tokens_per_row
        row = np.cumsum(begins | np.r_[True, fill[1:] != fill[:-1]]) - 1
        row_tokens = np.bincount(row, weights=tokens)
        by_length = np.argsort(row_tokens + rng.uniform(0, _MIXED_TOKENS, len(row_tokens)), kind="stable")
        counts = np.bincount(row)[by_length]
        batch_of_row = np.empty(len(by_length), dtype=np.int64)
        batch_of_row[by_length] = (np.cumsum(counts) - counts) * self._num_batches // len(chosen)
        batch = rng.permutation(self._num_batches)[batch_of_row][row]
        return [(chosen[batch == place], row[batch == place]) for place in range(self._num_batches)]

    def _read(self, chosen: NDArray[np.int64], prompts: list[str], prompt_of_rollout: NDArray[np.intp]) -> TaskBatch:
        rollouts = torch.from_numpy(self._rollouts[chosen])
        starts, lengths = self._store.rollouts["start"][rollouts], self._store.rollouts["length"][rollouts].long()
        ends = lengths.cumsum(0)
        steps = torch.arange(int(ends[-1])) + (starts - (ends - lengths)).repeat_interleave(lengths)
        transitions = self._store.transitions
        return TaskBatch(
            prompts=prompts,
            prompt_of_rollout=torch.from_numpy(prompt_of_rollout),
            lengths=lengths,
            observation=transitions[types.OBSERVATION][steps],
            action=transitions[types.ACTION][steps],
            next_observation=transitions[types.NEXT_OBSERVATION][steps],
            is_terminated=transitions[types.TERMINATED][steps[ends - 1]],
            answers=[self._answers[index] for index in chosen] if self._answers else [],
        )
