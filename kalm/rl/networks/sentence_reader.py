"""Reads a sentence from the frozen vectors of its tokens: a few learned questions, each of which looks at some of them.

One vector a sentence, which is all that the other policies get, blurs which colour belongs to which thing. Here every
query weighs the tokens on its own (multi-head attention with learned queries), so that one can find the first noun and
another the colour before the second.

Shape letters: G sentences, L tokens of the longest, E numbers of a token, Q queries, D numbers of an answer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SentenceReader(nn.Module):
    """Attention pooling; the output has ``num_queries * size`` numbers."""

    def __init__(self, token_size: int, num_queries: int, size: int) -> None:
        """Sizes E, Q and D."""
        super().__init__()
        self.norm = nn.LayerNorm(token_size)
        self.keys = nn.Linear(token_size, size)
        self.values = nn.Linear(token_size, size)
        self.queries = nn.Linear(size, num_queries, bias=False)  # one row a query
        self.output_size = num_queries * size

    def forward(self, tokens: Tensor, padding_mask: Tensor) -> Tensor:
        """What the queries found, shape (G, Q * D).

        Args:
            tokens: Shape (G, L, E).
            padding_mask: True = real token, shape (G, L).
        """
        tokens = self.norm(tokens)
        score = self.queries(self.keys(tokens)) / math.sqrt(self.keys.out_features)
        weight = score.masked_fill(~padding_mask.unsqueeze(-1), -torch.inf).softmax(dim=1)
        return torch.einsum("glq,gld->gqd", weight, self.values(tokens)).flatten(1)
