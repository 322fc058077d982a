"""A frozen encoder for tests of the tiny LLM: real vectors and a word tokenizer, without weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.word_encoder import WordEncoder


class WordTokenizer:
    """One token a word or punctuation mark; ids are given out as words come."""

    def __init__(self) -> None:
        """Begin without words."""
        self._words: list[str] = []

    def __call__(self, texts: str | Sequence[str], add_special_tokens: bool = True) -> dict[str, list]:
        """Ids of a text, or of each of several."""
        assert not add_special_tokens, "a text to be written has no special tokens"
        if isinstance(texts, str):
            return {"input_ids": [self._id(word) for word in re.findall(r"\w+|[^\w\s]", texts.lower())]}
        return {"input_ids": [self(text, add_special_tokens=False)["input_ids"] for text in texts]}

    def decode(self, token_ids: Sequence[int]) -> str:
        """Words with spaces between."""
        return " ".join(self._words[token_id] for token_id in token_ids)

    def convert_ids_to_tokens(self, token_ids: Sequence[int]) -> list[str]:
        """The words themselves."""
        return [self._words[token_id] for token_id in token_ids]

    def _id(self, word: str) -> int:
        if word not in self._words:
            self._words.append(word)
        return self._words.index(word)


class TokenEncoder(WordEncoder):
    """Each token's vector is its word's, with a little of the sentence's mixed in."""

    def __init__(self, size: int = 16) -> None:
        """Choose the number of entries in a vector."""
        super().__init__(size)
        self.__dict__["tokenizer"] = WordTokenizer()
        self.__dict__["fingerprint"] = f"words-{size}"
        self.texts_seen: list[str] = []

    def token_vectors(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """One vector a word, float32 of shape (n, L, E), and where there are words, bool of shape (n, L)."""
        self.texts_seen += texts
        rows = []
        for text in texts:
            words = torch.stack([torch.as_tensor(self._word(word)) for word in text.lower().split()])
            rows.append((words + 0.1 * words.mean(dim=0)).float())
        vectors = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return vectors, torch.arange(vectors.shape[1]) < lengths[:, None]
