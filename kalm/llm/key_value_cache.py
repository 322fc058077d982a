"""Preallocated keys and values for generation: new tokens are written in place, and nothing is computed twice.

Shape letters: K layers, B rows, N heads, L tokens of the longest prompt, M remembered tokens, S new tokens,
D numbers a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """What a decoder remembers of B rows: their prompts, padded at the end, then equally many new tokens each.

    Rows that are finished are dropped by ``keep``, so that the others do not pay for them.
    """

    def __init__(
        self, num_layers: int, prompt_mask: Tensor, max_new_tokens: int, dtype: torch.dtype = torch.float32
    ) -> None:
        """Plan for so many tokens; the prompts come in by the first ``extend``, whose shapes decide the rest.

        Args:
            num_layers: Layers of the decoder, K.
            prompt_mask: True at the real tokens of each prompt, bool of shape (B, L).
            max_new_tokens: Tokens that each row may add to its prompt.
            dtype: Kind of number that keys and values are kept as.
        """
        self._num_layers, self._dtype = num_layers, dtype
        self._num_tokens = prompt_mask.shape[1] + max_new_tokens
        self._keys = self._values = torch.empty(0)
        self._prompt_mask = prompt_mask
        self._prompt_lengths = prompt_mask.sum(dim=1)
        self._size = 0

    @property
    def size(self) -> int:
        """Remembered tokens of a row, M, padding of its prompt included."""
        return self._size

    def positions(self, num_tokens: int) -> Tensor:
        """Positions of the next tokens, int64 of shape (B, S); padding of a prompt takes up none."""
        columns = torch.arange(self._size, self._size + num_tokens, device=self._prompt_mask.device)
        if not self._size:
            return columns[None].expand(len(self._prompt_mask), -1)
        return columns + (self._prompt_lengths - self._prompt_mask.shape[1])[:, None]

    def attention_mask(self, num_tokens: int) -> Tensor:
        """Which of the M + S tokens the next S may see, bool of shape (B, 1, S, M + S)."""
        end = self._size + num_tokens
        causal = torch.ones(num_tokens, end, dtype=torch.bool, device=self._prompt_mask.device).tril(self._size)
        is_real = torch.ones(len(self._prompt_mask), end, dtype=torch.bool, device=self._prompt_mask.device)
        is_real[:, : self._prompt_mask.shape[1]] = self._prompt_mask[:, :end]
        return causal & is_real[:, None, None]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write what one layer makes of the next tokens.

        Args:
            layer: Its index.
            keys: Rotated keys of the next tokens, shape (B, N, S, D).
            values: Their values, shape (B, N, S, D).

        Returns:
            Keys and values of all tokens so far, shape (B, N, M + S, D), as views.
        """
        if not self._keys.numel():
            self._keys, self._values = self._room_for(keys), self._room_for(values)
        end = self._size + keys.shape[2]
        self._keys[layer, :, :, self._size : end] = keys
        self._values[layer, :, :, self._size : end] = values
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Count the next tokens as remembered, once every layer has written them."""
        self._size += num_tokens

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these, int64 of shape (rows kept,)."""
        self._keys, self._values = (self._kept(tensor, rows) for tensor in (self._keys, self._values))
        self._prompt_mask, self._prompt_lengths = self._prompt_mask[rows], self._prompt_lengths[rows]

    def _room_for(self, tensor: Tensor) -> Tensor:
        num_rows, num_heads, _, head_size = tensor.shape
        return tensor.new_zeros(self._num_layers, num_rows, num_heads, self._num_tokens, head_size, dtype=self._dtype)

    def _kept(self, tensor: Tensor, rows: Tensor) -> Tensor:
        kept = tensor.new_empty(tensor.shape[0], len(rows), *tensor.shape[2:])
        kept[:, :, :, : self._size] = tensor[:, rows, :, : self._size]
        return kept
