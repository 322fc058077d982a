"""What several decoders remember of the same rows of tokens, each in a cache of its own shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kalm.llm.backbones.key_value_cache import KeyValueCache, RowMemory


class JoinedCache(KeyValueCache):
    """A cache without layers of its own that keeps others in step with itself.

    Positions and attention masks are its own; a decoder is given its part, where it writes its keys and values.

    Attributes:
        parts: One cache a decoder.
    """

    def __init__(self, parts: Sequence[KeyValueCache]) -> None:
        """Join empty caches.

        Args:
            parts: One a decoder, all planned for the same rows and columns on one device.
        """
        first = parts[0]
        super().__init__(0, first.num_rows, first.num_columns, first.lengths.device, column_step=first.column_step)
        self.parts = list(parts)
        self._fix_addresses()

    def make_room(self, num_tokens: int) -> None:  # noqa: D102
        super().make_room(num_tokens)
        for part in self.parts:
            part.make_room(num_tokens)

    def advance(self, num_tokens: int) -> None:  # noqa: D102
        super().advance(num_tokens)
        for part in self.parts:
            part.advance(num_tokens)

    def trim(self, lengths: Tensor) -> None:  # noqa: D102
        super().trim(lengths)
        for part in self.parts:
            part.trim(lengths)

    def forget(self, rows: NDArray[np.int64]) -> None:  # noqa: D102
        super().forget(rows)
        for part in self.parts:
            part.forget(rows)

    def memory(self, row: int) -> RowMemory:  # noqa: D102
        memories = [part.memory(row) for part in self.parts]
        return RowMemory(tuple(own.keys[0] for own in memories), tuple(own.values[0] for own in memories))

    def recall(self, row: int, memory: RowMemory) -> None:  # noqa: D102
        self._count(row, memory.num_tokens)
        for part, keys, values in zip(self.parts, memory.keys, memory.values, strict=True):
            part.recall(row, RowMemory((keys,), (values,)))

    def restart(self, num_rows: int) -> None:  # noqa: D102
        super().restart(num_rows)
        for part in self.parts:
            part.restart(num_rows)

    def keep(self, rows: NDArray[np.int64]) -> None:  # noqa: D102
        super().keep(rows)
        for part in self.parts:
            part.keep(rows)

    def reserve(self, num_columns: int) -> None:  # noqa: D102
        super().reserve(num_columns)
        for part in self.parts:
            part.reserve(num_columns)
