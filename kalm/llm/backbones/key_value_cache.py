"""Preallocated keys and values for generation: new tokens are written in place, and nothing is computed twice.

Shape letters: K layers, R rows, N heads, C columns, M columns in use, S new tokens of a row, D numbers a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class RowMemory:
    """What a decoder, or each of several that read the same tokens, remembers of one row, shape (K, N, tokens, D)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def num_tokens(self) -> int:
        """Remembered tokens."""
        return self.keys[0].shape[2]


class KeyValueCache:
    """What a decoder remembers of R rows, each of which has read as many tokens as it has.

    A row's token at position p is in its column p. So rows never wait for each other: one may begin anew, from a
    prompt of its own, while the others go on.

    Attributes:
        lengths: Tokens that each row has read, int64 of shape (R,), on the device.
        num_columns: Tokens that a row has room for, C.
        num_used: Columns in use, M: those that the tokens up to the last ``make_room`` take up.
        column_step: The columns in use are a multiple of this, as far as there are as many: whoever compiles for
            fixed shapes wants few of them.
    """

    def __init__(
        self,
        num_layers: int,
        num_rows: int,
        num_columns: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        column_step: int = 1,
    ) -> None:
        """Plan for so many rows and tokens; the shapes of the first tokens decide the rest."""
        self.num_columns = num_columns
        self._max_rows = num_rows
        self.lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._counted = np.zeros(num_rows, dtype=np.int64)  # the same on the host, so that no step waits for a device
        self._num_layers, self._dtype, self.column_step = num_layers, dtype, column_step
        self._keys = self._values = torch.empty(0, device=device)
        self.num_used = self._most_used = 0

    @property
    def num_rows(self) -> int:
        """Rows in use, R: all until the first ``keep``."""
        return len(self._counted)

    def make_room(self, num_tokens: int) -> None:
        """Bring the next tokens of each row into use; on the host, before they are read."""
        self._counted += num_tokens
        size = int(self._counted.max(initial=0))
        if size > self.num_columns:
            raise ValueError(f"a row needs {size} columns; there are {self.num_columns}. Reserve more before reading")
        self.num_used = min(-(-size // self.column_step) * self.column_step, self.num_columns)
        self._most_used = max(self._most_used, self.num_used)

    def positions(self, num_tokens: int) -> Tensor:
        """Positions of the next tokens, int64 of shape (R, S)."""
        return self.lengths[:, None] + torch.arange(num_tokens, device=self.lengths.device)

    def attention_mask(self, num_tokens: int) -> Tensor:
        """Which of the M columns each of the next tokens may see, bool of shape (R, 1, S, M)."""
        columns = torch.arange(self.num_used, device=self.lengths.device)
        return (columns <= self.positions(num_tokens)[..., None])[:, None]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write what one layer makes of the next tokens: rotated keys, and values, of shape (R, N, S, D).

        Returns:
            Keys and values of the columns in use, shape (R, N, M, D), as views.
        """
        if not self._keys.numel():
            self._allocate(keys)
        num_rows, num_heads, num_tokens, _ = keys.shape
        rows = torch.arange(num_rows, device=keys.device)[:, None, None]
        heads = torch.arange(num_heads, device=keys.device)[:, None]
        place = rows, heads, self.positions(num_tokens)[:, None]
        self._keys[layer].index_put_(place, keys.to(self._dtype))
        self._values[layer].index_put_(place, values.to(self._dtype))
        used = layer, slice(num_rows), slice(None), slice(self.num_used)
        return self._keys[used], self._values[used]

    def advance(self, num_tokens: int) -> None:
        """Count the next tokens as read, once every layer has written them."""
        self.lengths += num_tokens

    def trim(self, lengths: Tensor) -> None:
        """Forget all but the first tokens of each row, int64 of shape (R,): padding, or a row that is done with."""
        self.lengths.copy_(lengths)
        self._counted = lengths.cpu().numpy().copy()

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Forget everything about these rows, int64 of shape (rows,)."""
        if len(rows):
            self.lengths[torch.from_numpy(rows).to(self.lengths.device)] = 0
            self._counted[rows] = 0

    def memory(self, row: int) -> RowMemory:
        """A copy of what is remembered of one row."""
        size = int(self._counted[row])
        return RowMemory((self._keys[:, row, :, :size].clone(),), (self._values[:, row, :, :size].clone(),))

    def recall(self, row: int, memory: RowMemory) -> None:
        """Make a row remember this and nothing else."""
        (keys,), (values,) = memory.keys, memory.values
        if not self._keys.numel():
            self._allocate(keys[0, None])
        size = memory.num_tokens
        for own, remembered in ((self._keys, keys), (self._values, values)):
            own[:, row, :, :size] = remembered
            # An unseen number counts nothing times, unless it is NaN: so nothing of an earlier rollout may stay.
            own[:, row, :, size : self._most_used] = 0
        self._count(row, size)

    def restart(self, num_rows: int) -> None:
        """Forget everything and use so many rows, at most as many as were planned for."""
        if num_rows == self.num_rows:
            self.lengths.zero_()  # where it is: a CUDA graph goes by addresses
        else:
            self.lengths = torch.zeros(num_rows, dtype=torch.int64, device=self.lengths.device)
        self._counted = np.zeros(num_rows, dtype=np.int64)

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Use fewer rows: ``rows[i]`` becomes row i.

        Only rows that move are copied, and they move from places that are not used any more.
        """
        moved = np.flatnonzero(rows != np.arange(len(rows)))
        if len(moved) and rows[moved].min() < len(rows):
            raise ValueError(f"rows are {rows.tolist()}; a row below {len(rows)} must stay where it is")
        places = [torch.from_numpy(index).to(self.lengths.device) for index in (moved, rows[moved], rows)]
        if self._keys.numel():
            for tensor in (self._keys, self._values):
                tensor[:, places[0], :, : self._most_used] = tensor[:, places[1], :, : self._most_used]
        self.lengths, self._counted = self.lengths[places[2]], self._counted[rows]

    def reserve(self, num_columns: int) -> None:
        """Make room for rows of so many tokens."""
        more = num_columns - self.num_columns
        if more > 0:
            self.num_columns = num_columns
            if self._keys.numel():
                self._keys, self._values = (functional.pad(t, (0, 0, 0, more)) for t in (self._keys, self._values))
                self._fix_addresses()

    def _count(self, row: int, num_tokens: int) -> None:
        """Let a row have read so many tokens."""
        self.lengths[row] = num_tokens
        self._counted[row] = num_tokens

    def _allocate(self, like: Tensor) -> None:
        _, num_heads, _, head_size = like.shape
        shape = self._num_layers, self._max_rows, num_heads, self.num_columns, head_size
        self._keys = like.new_zeros(shape, dtype=self._dtype)
        self._values = torch.zeros_like(self._keys)
        self._fix_addresses()

    def _fix_addresses(self) -> None:
        """Promise a compiler that these tensors stay where they are: CUDA graphs write to no others."""
        if self.column_step > 1:
            for tensor in (self._keys, self._values, self.lengths):
                torch._dynamo.mark_static_address(tensor)
