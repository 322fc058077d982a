"""A sentence encoder for tests: real vectors in microseconds, without weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kalm.language.encoder import SentenceEncoder


class WordEncoder(SentenceEncoder):
    """Adds up one fixed random vector a word and scales the sum to length 1: shared words, near vectors."""

    def __init__(self, size: int = 16) -> None:
        """Choose the number of entries in a vector."""
        super().__init__(cache_dir=None)
        self.__dict__["embedding_size"] = size

    def encode(self, texts: Sequence[str]) -> Tensor:
        """One vector a text, float32 of shape (n, E)."""
        sums = [np.sum([self._word(word) for word in text.lower().split()], axis=0) for text in texts]
        vectors = torch.tensor(np.array(sums), dtype=torch.float32)
        return torch.nn.functional.normalize(vectors, dim=-1)

    def token_vectors(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The vector of each word, (n, L, E), and where there is one, (n, L)."""
        rows = [torch.tensor(np.array([self._word(word) for word in text.lower().split()])).float() for text in texts]
        is_word = [torch.ones(len(row), dtype=torch.bool) for row in rows]
        return pad_sequence(rows, batch_first=True), pad_sequence(is_word, batch_first=True)

    def _word(self, word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        return np.random.default_rng(seed).normal(size=self.embedding_size)
