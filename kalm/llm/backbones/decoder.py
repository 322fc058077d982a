"""A small Llama-architecture decoder: pre-norm, rotary positions, gated feed-forward, no biases.

Written here rather than taken from transformers because it is a fifth faster on a CPU: one matrix product makes
queries, keys and values, one complex product rotates them, and LayerNorm, which has a fused CPU kernel, stands
where Llama has RMSNorm.

Shape letters: B rows, S new tokens of a row, M columns of the cache in use, H hidden size, N heads, D numbers a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kalm.llm.backbones.key_value_cache import KeyValueCache

_ROTARY_BASE = 10_000.0
_INITIAL_STD = 0.02


class Decoder(nn.Module):
    """A stack of decoder layers over vectors; embeddings and heads live elsewhere."""

    def __init__(
        self, hidden_size: int, num_layers: int, num_heads: int, feed_forward_size: int, dropout: float = 0.0
    ) -> None:
        """Build it with small random weights.

        Args:
            hidden_size: Numbers in a token's vector, H.
            num_layers: Layers.
            num_heads: Attention heads, N; must divide H into heads of an even size.
            feed_forward_size: Inner size of the gated feed-forward.
            dropout: Part of what each layer adds that is left out in training.
        """
        super().__init__()
        self.num_heads = num_heads
        self.head_size, rest = divmod(hidden_size, num_heads)
        if rest or self.head_size % 2:
            raise ValueError(
                f"num_heads is {num_heads}; it must divide hidden_size {hidden_size} into heads of an even size"
            )
        self.layers = nn.ModuleList(
            _Layer(hidden_size, num_heads, feed_forward_size, dropout) for _ in range(num_layers)
        )
        self.output_norm = nn.LayerNorm(hidden_size, bias=False)
        self.frequency: Tensor
        frequency = _ROTARY_BASE ** (-torch.arange(0, self.head_size, 2) / self.head_size)
        self.register_buffer("frequency", frequency, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # What is added to the residual stream starts smaller the more layers add to it (GPT-2's rule).
                scale = (2 * num_layers) ** -0.5 if "output" in name else 1.0
                nn.init.normal_(parameter, std=_INITIAL_STD * scale)

    def forward(
        self, embeddings: Tensor, positions: Tensor, attention_mask: Tensor, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Run the layers over new tokens.

        Args:
            embeddings: New tokens, shape (B, S, H).
            positions: Their positions, int64 of shape (B, S).
            attention_mask: Which tokens each new one may see, bool of shape (B, 1, S, M).
            cache: Has M columns in use, those of the new tokens among them; None if there is nothing before and after.

        Returns:
            Hidden vectors, shape (B, S, H).
        """
        # One conversion to what the attention kernel adds to its scores, instead of one a layer.
        bias = torch.zeros_like(attention_mask, dtype=embeddings.dtype).masked_fill(~attention_mask, -torch.inf)
        angles = positions[..., None] * self.frequency
        rotation = torch.polar(torch.ones_like(angles), angles)[:, :, None]
        hidden = embeddings
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, rotation, bias, cache, index)
        return self.output_norm(hidden)


class _Layer(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, feed_forward_size: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.attention_norm = nn.LayerNorm(hidden_size, bias=False)
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.attention_output = nn.Linear(hidden_size, hidden_size, bias=False)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, bias=False)
        self.gate_and_inner = nn.Linear(hidden_size, 2 * feed_forward_size, bias=False)
        self.feed_forward_output = nn.Linear(feed_forward_size, hidden_size, bias=False)

    def forward(
        self, hidden: Tensor, rotation: Tensor, attention_bias: Tensor, cache: KeyValueCache | None, index: int
    ) -> Tensor:
        heads = self.query_key_value(self.attention_norm(hidden)).unflatten(-1, (3 * self.num_heads, -1))
        query_key = _rotate(heads[:, :, : 2 * self.num_heads], rotation).transpose(1, 2)
        query, key = query_key.chunk(2, dim=1)
        value = heads[:, :, 2 * self.num_heads :].transpose(1, 2)
        if cache is not None:
            key, value = cache.extend(index, key, value)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_bias)
        hidden = hidden + self.dropout(self.attention_output(attended.transpose(1, 2).flatten(-2)))
        gate, inner = self.gate_and_inner(self.feed_forward_norm(hidden)).chunk(2, dim=-1)
        return hidden + self.dropout(self.feed_forward_output(functional.silu(gate) * inner))


def _rotate(vectors: Tensor, rotation: Tensor) -> Tensor:
    """Turn pairs of numbers by the angles of their position: (B, S, N, D) by complex (B, S, 1, D / 2)."""
    pairs = torch.view_as_complex(vectors.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2)
