"""Runs a language model over many rollouts at once, each at its own place: some have just begun, some are far on.

Shape letters: R rows, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kalm.llm.backbones.backbone import Backbone
from kalm.llm.backbones.key_value_cache import RowMemory


class Reader(Protocol):
    """Reads one rollout a row, behind a prompt of its own."""

    def admit(self, rows: Sequence[int], prompts: Sequence[str], num_tokens: int) -> None:
        """Begin these rows anew with these prompts; at most so many tokens will come behind any of them."""

    def make_room(self, num_tokens: int) -> None:
        """Get ready to extend each row by so many tokens."""

    def extend(self, vectors: Tensor) -> Tensor:
        """Hidden vectors of the next token of each row, shape (R, H), from its vector, shape (R, H)."""

    def release(self, rows: NDArray[np.int64]) -> None:
        """These rows are done with; they may be admitted anew, or dropped."""

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop all rows but these: row ``rows[i]`` becomes row i; a row below ``len(rows)`` stays where it is."""


class CachedReader:
    """Remembers keys and values: each token is run once, and so is each prompt that several rollouts share."""

    def __init__(self, backbone: Backbone, num_rows: int, column_step: int = 1) -> None:
        """Plan for so many rows; nothing is read yet, and no memory taken.

        Args:
            backbone: The language model.
            num_rows: Rows.
            column_step: See ``KeyValueCache``.
        """
        self._backbone, self._column_step = backbone, column_step
        self._cache = backbone.make_cache(num_rows, 0, column_step)
        self._memories: dict[str, RowMemory] = {}  # the prompt that was used last stands last

    def begin(self, num_rows: int) -> None:
        """Forget everything; let there be so many rows, at most as many as were planned for.

        Prompts too: how a prompt's numbers are rounded depends on those that it is read with, and a run that was killed
        and goes on must imagine the same to the last bit.
        """
        self._cache.restart(num_rows)
        self._memories.clear()

    def admit(self, rows: Sequence[int], prompts: Sequence[str], num_tokens: int) -> None:  # noqa: D102
        self._read([prompt for prompt in dict.fromkeys(prompts) if prompt not in self._memories])
        memories = [self._memories.pop(prompt) for prompt in dict.fromkeys(prompts)]
        self._memories |= dict(zip(dict.fromkeys(prompts), memories, strict=True))
        longest = max(memory.num_tokens for memory in memories)
        self._reserve(longest + num_tokens)
        for row, prompt in zip(rows, prompts, strict=True):
            self._cache.recall(row, self._memories[prompt])
        self._forget_prompts(len(memories))

    def make_room(self, num_tokens: int) -> None:  # noqa: D102
        self._cache.make_room(num_tokens)

    def extend(self, vectors: Tensor) -> Tensor:  # noqa: D102
        return self._backbone.read_on(vectors[:, None], self._cache)[:, 0]

    def release(self, rows: NDArray[np.int64]) -> None:  # noqa: D102
        self._cache.forget(rows)

    def keep(self, rows: NDArray[np.int64]) -> None:  # noqa: D102
        self._cache.keep(rows)

    def _read(self, prompts: Sequence[str]) -> None:
        """Run the model over prompts, and remember what it makes of each."""
        if not prompts:
            return
        vectors, prompt_mask = self._backbone.embed_prompts(prompts)
        cache = self._backbone.make_cache(*prompt_mask.shape)
        self._backbone.read(vectors, cache)
        cache.trim(prompt_mask.sum(dim=1))
        self._memories |= {prompt: cache.memory(row) for row, prompt in enumerate(prompts)}

    def _reserve(self, num_columns: int) -> None:
        self._backbone.require_room(num_columns)
        step = self._column_step
        self._cache.reserve(-(-num_columns // step) * step)

    def _forget_prompts(self, num_needed: int) -> None:
        """Let prompts take up no more memory than rollouts do; forget first those that were not used for longest."""
        budget = self._cache.num_rows * self._cache.num_columns
        num_tokens = sum(memory.num_tokens for memory in self._memories.values())
        for prompt in list(self._memories)[:-num_needed]:
            if num_tokens <= budget:
                return
            num_tokens -= self._memories.pop(prompt).num_tokens
