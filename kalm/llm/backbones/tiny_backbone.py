"""The backbone for a laptop: a small decoder trained from scratch on top of a frozen, pretrained sentence encoder.

Text comes in as the encoder's contextual token vectors, computed once a text and cached, so that training never
runs the encoder. Text goes out as the encoder's WordPiece tokens, but only those that occur in the training data:
a softmax over all 30,522 would cost more than the rest of the model. A text that is being written goes back in
through a small table of its own, because contextual vectors of a whole text would give away how it goes on.

The decoder is of Llama's architecture: pre-norm, rotary positions, gated feed-forward, no biases. It is written here
rather than taken from transformers because it is a fifth faster on a CPU: one matrix product makes queries, keys and
values, one complex product rotates them, and LayerNorm, which has a fused CPU kernel, stands where Llama has RMSNorm.

Shape letters: B rows, S new tokens of a row, M columns of the cache in use, H hidden size, N heads, D numbers a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kalm.core.errors import DataError
from kalm.language.encoder import SentenceEncoder
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.backbones.key_value_cache import KeyValueCache

_ROTARY_BASE = 10_000.0
_INITIAL_STD = 0.02


class TinyBackbone(Backbone):
    """A decoder of about a million parameters that learns to imagine within minutes on two CPU cores."""

    end_of_text = 0
    vocabulary: Tensor

    def __init__(
        self,
        encoder: SentenceEncoder,
        hidden_size: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        feed_forward_size: int = 384,
        dropout: float = 0.0,
    ) -> None:
        """Build it with random weights.

        Args:
            encoder: Frozen sentence encoder that prompts go through.
            hidden_size: Numbers in a token's vector.
            num_layers: Decoder layers.
            num_heads: Attention heads; must divide ``hidden_size`` into heads of an even size.
            feed_forward_size: Inner size of the gated feed-forward.
            dropout: Part of what each layer adds that is left out in training, in [0, 1).
        """
        super().__init__()
        self.hidden_size = hidden_size
        self._encoder = encoder  # not a module: its weights are frozen and stay out of checkpoints
        self._vectors: dict[str, Tensor] = {}
        self._token_ids: dict[str, list[int]] = {}
        self.prompt_projection = nn.Linear(encoder.embedding_size, hidden_size)
        self.decoder = Decoder(hidden_size, num_layers, num_heads, feed_forward_size, dropout)
        self.register_buffer("vocabulary", torch.zeros(0, dtype=torch.int64))
        self._resize_vocabulary([])

    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:  # noqa: D102
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._vectors]
        if missing:
            vectors, attention_mask = self._encoder.token_vectors(missing)
            for prompt, rows, size in zip(missing, vectors, attention_mask.sum(dim=1).tolist(), strict=True):
                self._vectors[prompt] = rows[:size].clone()
        rows = [self._vectors[prompt] for prompt in prompts]
        device = self.prompt_projection.weight.device
        vectors = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return self.prompt_projection(vectors), torch.arange(vectors.shape[1], device=device) < lengths[:, None]

    def forward(  # noqa: D102
        self, embeddings: Tensor, positions: Tensor, attention_mask: Tensor, cache: KeyValueCache | None = None
    ) -> Tensor:
        return self.decoder(embeddings, positions, attention_mask, cache)

    def make_cache(self, num_rows: int, num_columns: int, column_step: int = 1) -> KeyValueCache:  # noqa: D102
        device = self.prompt_projection.weight.device
        return KeyValueCache(len(self.decoder.layers), num_rows, num_columns, device, column_step=column_step)

    def learn_vocabulary(self, texts: Sequence[str]) -> None:
        """Take up every token that occurs in ``texts``; what was learned for other tokens is forgotten."""
        token_ids = self._encoder.tokenizer(sorted(set(texts)), add_special_tokens=False)["input_ids"] if texts else []
        vocabulary = sorted({token_id for ids in token_ids for token_id in ids})
        if vocabulary != self.vocabulary.tolist():
            self._resize_vocabulary(vocabulary)

    def tokenize(self, text: str) -> list[int]:  # noqa: D102
        if text not in self._token_ids:
            index_of = {token_id: index for index, token_id in enumerate(self.vocabulary.tolist(), start=1)}
            token_ids = self._encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
            unknown = [token_id for token_id in token_ids if token_id not in index_of]
            if unknown:
                tokens = ", ".join(self._encoder.tokenizer.convert_ids_to_tokens(unknown))
                raise DataError(
                    f"the text {text!r} has tokens that this model never learned to write: {tokens}. It was grounded "
                    "on other instructions; ground it again on these"
                )
            self._token_ids[text] = [index_of[token_id] for token_id in token_ids]
        return self._token_ids[text]

    def decode(self, token_ids: Sequence[int]) -> str:  # noqa: D102
        until_end = list(takewhile(lambda token_id: token_id != self.end_of_text, token_ids))
        return str(self._encoder.tokenizer.decode([int(self.vocabulary[token_id - 1]) for token_id in until_end]))

    def embed_tokens(self, token_ids: Tensor) -> Tensor:  # noqa: D102
        return self.token_embedding(token_ids)

    def text_logits(self, hidden: Tensor) -> Tensor:  # noqa: D102
        return self.text_head(hidden)

    @property
    def frozen_fingerprint(self) -> str:  # noqa: D102
        return self._encoder.fingerprint

    def _resize_vocabulary(self, token_ids: list[int]) -> None:
        self.vocabulary = torch.tensor(token_ids, dtype=torch.int64, device=self.vocabulary.device)
        self._token_ids.clear()
        device = self.prompt_projection.weight.device
        self.token_embedding = nn.Embedding(len(token_ids) + 1, self.hidden_size, device=device)
        self.text_head = nn.Linear(self.hidden_size, len(token_ids) + 1, device=device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any) -> None:
        """Take the vocabulary's size from the checkpoint before its weights are copied in."""
        vocabulary = state_dict.get(f"{prefix}vocabulary")
        if vocabulary is not None and vocabulary.tolist() != self.vocabulary.tolist():
            self._resize_vocabulary(vocabulary.tolist())
        super()._load_from_state_dict(state_dict, prefix, *args, **options)


class Decoder(nn.Module):
    """A stack of decoder layers over vectors; embeddings and heads live elsewhere."""

    frequency: Tensor

    def __init__(
        self, hidden_size: int, num_layers: int, num_heads: int, feed_forward_size: int, dropout: float = 0.0
    ) -> None:
        """Build it with small random weights; the sizes are those of ``TinyBackbone``."""
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
        """Run the layers over new tokens, as ``Backbone.forward`` says."""
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
