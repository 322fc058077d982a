"""What perceptrons read of a scene whose things look at the words of a sentence, each at those that concern it.

One vector a sentence, which is what perceptrons read alone, blurs which colour goes with which part of an instruction.
Here every thing of an observation, such as a ball, is a token: its numbers, and which thing it is. In each layer the
things look at each other, then at the vectors of the sentence's words, then each works on what it found. The layers are
those of a transformer decoder (Vaswani et al. 2017, arXiv:1706.03762) that normalises first, without an order among
things or words; a frozen sentence encoder has put the words' order into their vectors.

Sentences come as one row, (L * E), whose zeros at the end stand for no word (``PolicyData.embed``).

Shape letters: L words at most, n words of a batch, E numbers of a word, P things, S numbers of the largest, W width,
H heads, D = W / H.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kalm.core.errors import require
from kalm.core.specs import Spec

_LARGEST_HEAD = 16
_NUM_TELLING = 8  # numbers of a word that no sentence encoder makes zero all at once


class TokenEncoder(nn.Module):
    """Things of an observation after they have looked at a sentence, side by side: ``output_size`` numbers, P * W."""

    columns: Tensor

    def __init__(self, spec: Spec, hidden_sizes: Sequence[int]) -> None:
        """Build a layer for each of ``hidden_sizes``, which are all W.

        Raises:
            KalmError: If they differ.
            DataError: If observations are no vectors.
        """
        super().__init__()
        is_even = len(set(hidden_sizes)) == 1
        require(is_even, "hidden_sizes", list(hidden_sizes), "of one width, where tokens are read (num_goal_tokens)")
        width, self.num_words = hidden_sizes[0], spec.num_goal_tokens
        columns = _columns_of_things(spec)
        self.register_buffer("columns", columns, persistent=False)
        self.numbers = nn.Linear(columns.shape[1], width)
        self.names = nn.Embedding(len(columns), width)
        word_size = spec.goal_embedding_size // spec.num_goal_tokens
        self.word_norm = nn.LayerNorm(word_size)
        self.words = nn.Linear(word_size, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in hidden_sizes)
        self.output_norm = nn.LayerNorm(width)
        self.output_size = len(columns) * width

    def forward(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """Of observations (..., O) and sentences (..., L * E), whose leading dimensions broadcast: (..., P * W)."""
        with_nothing = functional.pad(observation, (0, 1))
        things = self.numbers(with_nothing[..., self.columns]) + self.names.weight
        vectors = goal_embedding.unflatten(-1, (self.num_words, -1))
        sentence = _Sentence(vectors, is_packed=self.training and not _is_vectorized(vectors))
        words = self.words(self.word_norm(sentence.vectors))
        for layer in self.layers:
            things = layer(things, words, sentence)
        return self.output_norm(things).flatten(-2)


class OnTokens(nn.Module):
    """A perceptron, or an ensemble, behind an encoder of observation and sentence of its own.

    It is asked like one that reads both itself, and has as many further inputs.
    """

    def __init__(self, encoder: TokenEncoder | WholeSentence, network: Any) -> None:
        """Put one before the other; the network's first input are the encoder's numbers."""
        super().__init__()
        self.encoder, self.network = encoder, network

    def forward(self, observation: Tensor, goal_embedding: Tensor, *others: Tensor, **options: Any) -> Any:
        """What the network makes of observations (..., O), sentences (..., L * E) and other inputs."""
        seen = self._seen(observation, goal_embedding, options.get("frozen", False))
        return self.network(seen, *others, **options)

    def each(self, observation: Tensor, goal_embedding: Tensor, *others: Tensor) -> Any:
        """Let every member of an ensemble read inputs of its own, (N, ..., n)."""
        return self.network.each(self.encoder(observation, goal_embedding), *others)

    def given(self, observation: Tensor, goal_embedding: Tensor, **options: Any) -> Any:
        """The members of an ensemble as functions of their last inputs."""
        seen = self._seen(observation, goal_embedding, options.get("frozen", False))
        return self.network.given(seen, **options)

    @property
    def num_members(self) -> int:
        """Members of an ensemble, N."""
        return int(self.network.num_members)

    def _seen(self, observation: Tensor, goal_embedding: Tensor, frozen: bool) -> Tensor:
        # Nobody wants the gradient of an observation or a sentence, so what is frozen needs none at all.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return self.encoder(observation, goal_embedding)


class MeanToken(nn.Module):
    """One token of ``size`` numbers for a whole sentence: the mean of its words', of each as a linear layer has it."""

    def __init__(self, spec: Spec, size: int) -> None:
        """Read sentences of as many words as ``spec`` has."""
        super().__init__()
        self.num_words = spec.num_goal_tokens
        word_size = spec.goal_embedding_size // spec.num_goal_tokens
        self.norm = nn.LayerNorm(word_size)
        self.words = nn.Linear(word_size, size)

    def forward(self, goal_embedding: Tensor) -> Tensor:
        """Of sentences (..., L * E), shape (..., size)."""
        sentence = _Sentence(goal_embedding.unflatten(-1, (self.num_words, -1)), is_packed=False)
        is_word = sentence.is_word.unsqueeze(-1)
        total = (self.words(self.norm(sentence.vectors)) * is_word).sum(-2)
        return total / is_word.sum(-2).clamp(min=1)


class WholeSentence(nn.Module):
    """An observation as it is, beside one token for the whole sentence: for whom words decide little.

    ``output_size`` numbers.
    """

    def __init__(self, spec: Spec, size: int) -> None:
        """Make a token of ``size`` numbers."""
        super().__init__()
        self.token = MeanToken(spec, size)
        self.output_size = spec.observation_size + size

    def forward(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """Of observations (..., O) and sentences (..., L * E) of the same leading dimensions: (..., output_size)."""
        return torch.cat([observation, self.token(goal_embedding)], dim=-1)


def goal_token(spec: Spec, size: int) -> nn.Module:
    """What makes a token of ``size`` numbers of a goal embedding."""
    return MeanToken(spec, size) if spec.num_goal_tokens else nn.Linear(spec.goal_embedding_size, size)


class _Layer(nn.Module):
    """Things look at each other, at words, and think; what comes out is added to what went in, each time."""

    is_of_head: Tensor  # 1 where a column belongs to a head, (H, W)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head_size = math.gcd(width, _LARGEST_HEAD)
        head_of_column = torch.arange(width) // self.head_size
        is_of_head = head_of_column == torch.arange(width // self.head_size).unsqueeze(1)
        self.register_buffer("is_of_head", is_of_head.float(), persistent=False)
        self.thing_norm = nn.LayerNorm(width)
        # Without biases: that of a key changes nothing but rounding, which Adam would blow up.
        self.thing_query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.thing_output = nn.Linear(width, width)
        self.question_norm = nn.LayerNorm(width)
        self.question = nn.Linear(width, width)
        self.word_key_value = nn.Linear(width, 2 * width, bias=False)
        self.word_output = nn.Linear(width, width)
        self.thought_norm = nn.LayerNorm(width)
        self.thought = nn.Linear(width, 2 * width)
        self.thought_output = nn.Linear(2 * width, width)

    def forward(self, things: Tensor, words: Tensor, sentence: _Sentence) -> Tensor:
        """Things (..., P, W) after they have looked at words, (n, W) or (..., L, W) as the sentence has them."""
        query, key, value = self.thing_query_key_value(self.thing_norm(things)).chunk(3, dim=-1)
        things = things + self.thing_output(self._attend(query, key, value, None))
        key, value = sentence.in_places(self.word_key_value(words)).chunk(2, dim=-1)
        query = self.question(self.question_norm(things))
        things = things + self.word_output(self._attend(query, key, value, sentence.is_word))
        return things + self.thought_output(functional.relu(self.thought(self.thought_norm(things))))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, is_there: Tensor | None) -> Tensor:
        """What each query (..., P, W) finds in values (..., L, W) by keys (..., L, W), where ``is_there``, (..., L)."""
        # A head is a query of which only its own columns are left: words need not be sorted by heads, which would cost
        # more than the products with zeros do.
        of_heads = query.unsqueeze(-2) * (self.is_of_head / math.sqrt(self.head_size))  # (..., P, H, W)
        score = of_heads.flatten(-3, -2) @ key.transpose(-2, -1)  # (..., P * H, L)
        if is_there is not None:
            # Not minus infinity: a sentence without words, as a row that fills up a batch has, is no error.
            score = score.masked_fill(~is_there.unsqueeze(-2), torch.finfo(score.dtype).min)
        found = (score.softmax(dim=-1) @ value).unflatten(-2, of_heads.shape[-3:-1])
        return (found * self.is_of_head).sum(dim=-2)


class _Sentence:
    """Which places of sentences hold a word, and the words' vectors: at all places, or packed without the empty ones.

    Most sentences are far shorter than the longest, so packing, and leaving out places where no sentence of the batch
    has a word, saves training more than half of its time. How large the products are then depends on the batch, and so
    does rounding: evaluation leaves words in their places.
    """

    def __init__(self, vectors: Tensor, is_packed: bool) -> None:
        """Take vectors (..., L, E)."""
        self.is_word = (vectors[..., :_NUM_TELLING] != 0).any(dim=-1)
        if is_packed:
            longest = int(self.is_word.sum(dim=-1).max())  # what is no word comes last
            vectors, self.is_word = vectors[..., :longest, :], self.is_word[..., :longest]
        self._place = self.is_word.flatten().nonzero().squeeze(1) if is_packed else None
        if self._place is not None:
            vectors = vectors.flatten(0, -2).index_select(0, self._place)
        self.vectors = vectors.float()

    def in_places(self, packed: Tensor) -> Tensor:
        """Numbers of words where the words stand, (..., L, M), zeros elsewhere, of those of ``vectors``, (n, M)."""
        if self._place is None:
            return packed
        empty = packed.new_zeros(self.is_word.numel(), packed.shape[-1])
        return empty.index_copy(0, self._place, packed).unflatten(0, self.is_word.shape)


def _is_vectorized(tensor: Tensor) -> bool:
    """Whether ``torch.func.vmap`` runs this for several policies at once; it knows no size that depends on numbers."""
    return torch._C._functorch.is_batchedtensor(tensor)


def _columns_of_things(spec: Spec) -> Tensor:
    """Where in an observation each thing's numbers lie, int64 of shape (P, S); O where a thing has fewer.

    Numbers that belong to no thing are one more; so is a whole observation that tells no things apart.
    """
    size = spec.observation_size
    things = [list(range(first, end)) for first, end in spec.things]
    rest = sorted(set(range(size)) - {column for thing in things for column in thing})
    things += [rest] if rest else []
    largest = max(map(len, things))
    return torch.tensor([thing + [size] * (largest - len(thing)) for thing in things])
