"""The seam between grounding and the language model under it.

``GroundedLLM`` works on vectors: it asks a backbone for the vectors of a prompt, puts those of states, actions and
text behind them, lets the backbone run over all, and lets it write text. Everything else about a language model
(weights, tokenizer, quantisation, adapters) stays behind this class. ``TinyBackbone`` is the one for a laptop,
``HuggingFaceBackbone`` stands for any pretrained causal language model.

Shape letters: B rows, L tokens of a prompt or a text, S new tokens of a row, M columns of a cache, H hidden size,
V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kalm.core.errors import CheckpointError, DataError
from kalm.core.provenance import changes
from kalm.llm.backbones.key_value_cache import KeyValueCache

# About the size of what encoders of states and actions yield, so that no kind of token drowns another.
TOKEN_STD = 0.5


class Backbone(nn.Module, ABC):
    """A causal language model that reads and yields vectors.

    Attributes:
        hidden_size: Numbers in a token's vector, H.
        end_of_text: Id of the token that ends an answer.
        context_size: Most tokens of a prompt with its rollout and answer; None if there is no limit.
        context_note: What limits them, if it is not the model's length.
        token_scale: What the vectors of states and actions are multiplied by, so that they are about as long as those
            of text; known once the weights are there. Of a backbone made of several models, that of each part counts.
        reads_any_mask: Whether ``forward`` heeds every attention mask. If not, a row must hold one rollout and
            nothing in front of its prompt, each token seeing all before it.
    """

    hidden_size: int
    end_of_text: int
    context_size: int | None = None
    context_note: str = ""
    token_scale: float = 1.0
    reads_any_mask: bool = True

    @property
    def parts(self) -> tuple[Backbone, ...]:
        """The models whose vectors lie side by side in a token's, mostly one.

        Actions and ends are read off the first, next states off the last.
        """
        return (self,)

    def load(self, device: torch.device) -> None:
        """Load pretrained weights to where they will be used; does nothing the second time, or if there are none."""

    def save_adapter(self, folder: Path) -> bool:
        """Write what was trained as files that other programs read, if there is such a form; whether it was."""
        return False

    @property
    def identity(self) -> dict[str, Any]:
        """Plain types that must be the same where a checkpoint is saved and where it is loaded."""
        return {"class": type(self).__name__, "frozen": self.frozen_fingerprint}

    @property
    def description(self) -> dict[str, Any]:
        """Plain types that say what this is, ``identity`` among them; goes into every checkpoint."""
        return self.identity

    @abstractmethod
    def embed_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Vectors of B prompts, padded at the end, (B, L, H); and True at their real tokens, (B, L)."""

    @abstractmethod
    def forward(
        self, embeddings: Tensor, positions: Tensor, attention_mask: Tensor, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Run over new tokens.

        Args:
            embeddings: Their vectors, shape (B, S, H).
            positions: Their positions, int64 of shape (B, S).
            attention_mask: Which tokens each may see, bool of shape (B, 1, S, M).
            cache: Has M columns in use, those of the new tokens among them; None if there is nothing before and after.

        Returns:
            Hidden vectors, shape (B, S, H).
        """

    @abstractmethod
    def make_cache(self, num_rows: int, num_columns: int, column_step: int = 1) -> KeyValueCache:
        """An empty cache; a ``DataError`` if ``num_columns`` is more than ``context_size``."""

    def require_room(self, num_tokens: int) -> None:
        """Refuse with a ``DataError`` rows of more tokens than the model can tell apart."""
        if self.context_size is not None and num_tokens > self.context_size:
            note = f" ({self.context_note})" if self.context_note else ""
            raise DataError(
                f"a prompt and what comes behind it need {num_tokens} tokens; the language model reads at most "
                f"{self.context_size}{note}. Shorten the instruction, allow fewer steps, collect shorter rollouts, or "
                "choose a model with a longer context"
            )

    def read(self, vectors: Tensor, cache: KeyValueCache) -> Tensor:
        """Run over the next tokens of each row of the cache, and remember them; from (B, S, H) to (B, S, H)."""
        cache.make_room(vectors.shape[1])
        return self.read_on(vectors, cache)

    def read_on(self, vectors: Tensor, cache: KeyValueCache) -> Tensor:
        """``read`` where ``cache.make_room`` was called before: tensors only, which a compiler wants."""
        size = vectors.shape[1]
        hidden: Tensor = self(vectors, cache.positions(size), cache.attention_mask(size), cache)
        cache.advance(size)
        return hidden

    @abstractmethod
    def learn_vocabulary(self, texts: Sequence[str]) -> None:
        """Make sure that these texts can be written; does nothing where the vocabulary is fixed."""

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Ids of a text to be written, without the end of text."""

    @property
    def beginning_of_text(self) -> list[int]:
        """Ids that stand in front of every text that is no prompt's answer; none where a model needs none."""
        return []

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids that ``text_logits`` ranks, up to the end of text."""

    @abstractmethod
    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """Vectors of text that is being written, from int64 (...) to (..., H); one token knows no other."""

    @abstractmethod
    def text_logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token of a text, from (..., H) to (..., V)."""

    @property
    @abstractmethod
    def frozen_fingerprint(self) -> str:
        """Identity of the weights that are not trained and therefore not in a checkpoint."""


def require_same_backbone(checkpoint: Mapping[str, Any], backbone: Backbone) -> None:
    """Refuse weights that were trained on top of others, with a ``CheckpointError`` that lists every difference."""
    expected = backbone.identity
    found = {name: checkpoint["backbone"].get(name) for name in expected} if "backbone" in checkpoint else expected
    if found != expected:
        raise CheckpointError(
            f"the checkpoint is of another backbone: {'; '.join(changes(found, expected))}. Give the model and the "
            "tuning that it was trained with (frozen is the identity of the weights that it does not hold)"
        )
