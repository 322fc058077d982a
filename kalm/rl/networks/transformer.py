"""A decoder-only transformer over vectors: each token sees itself and those before it.

The layers are those of GPT-2 as Decision Transformer (Chen et al. 2021, arXiv:2106.01345) uses it: normalise, attend,
add; normalise, feed forward with ReLU, add. Attention is torch's own ``scaled_dot_product_attention``.

Dropout takes its random numbers as an input, like every loss of kalm, so that an update is a pure function and can be
repeated or run for several seeds at once. A number for each token and one for each component, added modulo 1, decide
which numbers fall out: each does with the chosen probability and any two independently, at the price of L + D random
numbers rather than L * D. The attention weights are not dropped, which torch does with hidden random numbers only.

Shape letters: B batch, L tokens, D width, H heads, Z numbers of noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel


class CausalTransformer(nn.Module):
    """Layers of causal self-attention."""

    def __init__(
        self,
        width: int,
        feedforward_sizes: Sequence[int],
        num_heads: int,
        dropout: float,
        is_side_by_side: bool = False,
    ) -> None:
        """Initialise the layers as torch does by default.

        Tokens have ``width`` numbers, D, a multiple of ``num_heads``; each layer has a feed-forward part of its hidden
        size. ``torch.func.vmap``, which policies side by side run in, knows but the plain kind of attention.
        """
        super().__init__()
        self.width, self.dropout = width, dropout
        self.layers = nn.ModuleList(_Layer(width, size, num_heads, is_side_by_side) for size in feedforward_sizes)
        self.output_norm = nn.LayerNorm(width)

    def noise_size(self, num_tokens: int) -> int:
        """Random numbers that a sequence of ``num_tokens`` tokens needs for dropout, Z."""
        return (1 + 2 * len(self.layers)) * (num_tokens + self.width) if self.dropout else 0

    def forward(self, tokens: Tensor, noise: Tensor | None = None) -> Tensor:
        """Map tokens of shape (B, L, D) to outputs of the same shape; dropout by ``noise``, (B, Z), None for none."""
        size = tokens.shape[-2] + self.width
        places: list[Tensor | None] = [None] * (1 + 2 * len(self.layers))
        if self.dropout and noise is not None:
            places = list(noise[:, : len(places) * size].split(size, dim=-1))
        hidden = separable_dropout(tokens, places[0], self.dropout)
        for layer, first, second in zip(self.layers, places[1::2], places[2::2], strict=True):
            assert isinstance(layer, _Layer)
            hidden = hidden + separable_dropout(layer.attend(hidden), first, self.dropout)
            hidden = hidden + separable_dropout(layer.feed_forward(hidden), second, self.dropout)
        return self.output_norm(hidden)


class _Layer(nn.Module):
    """One layer; the residual connections are the caller's."""

    def __init__(self, width: int, feedforward_size: int, num_heads: int, is_side_by_side: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kinds = nullcontext if not is_side_by_side else partial(sdpa_kernel, SDPBackend.MATH)
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.feedforward_hidden = nn.Linear(width, feedforward_size)
        self.feedforward_output = nn.Linear(feedforward_size, width)

    def attend(self, hidden: Tensor) -> Tensor:
        """What each token takes from those up to it, (B, L, D)."""
        joined = self.query_key_value(self.attention_norm(hidden)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = joined.transpose(-4, -2).unbind(-3)  # each (B, H, L, D / H)
        with self.kinds():
            taken = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.attention_output(taken.transpose(-3, -2).flatten(-2))

    def feed_forward(self, hidden: Tensor) -> Tensor:
        """What each token makes of itself, (B, L, D)."""
        return self.feedforward_output(functional.relu(self.feedforward_hidden(self.feedforward_norm(hidden))))


def separable_dropout(values: Tensor, noise: Tensor | None, rate: float) -> Tensor:
    """Set numbers, (B, L, D), to 0 with probability ``rate`` in [0, 1), any two independently; scale the others up.

    Standard normal numbers, shape (B, L + D), decide; None drops nothing.
    """
    if noise is None:
        return values
    uniform = torch.special.ndtr(noise)
    of_token, of_component = uniform.split(list(values.shape[-2:]), dim=-1)
    is_kept = (of_token.unsqueeze(-1) + of_component.unsqueeze(-2)).frac() >= rate
    return values * is_kept / (1 - rate)
