"""The port for text: messages in, scores of answers out, and the loss of answers that are to be learned.

``Backbone`` is the port for vectors between text; both look at the same loaded model, in 4 bits or not, with adapters
or without. Messages go through the model's own chat template, and a model that has none is refused: a conversation
that is written in another form than a model was trained on is read wrongly without a word.

Shape letters: B conversations, C answers to choose from, N tokens of answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from kalm.core.errors import DataError
from kalm.llm.backbones.hugging_face_backbone import HuggingFaceBackbone

Messages = Sequence[Mapping[str, str]]  # each with a role (system, user, assistant) and its content, in order


class LanguageModel:
    """Reads conversations with a pretrained model, whose weights are loaded."""

    def __init__(self, backbone: HuggingFaceBackbone) -> None:
        """Look at a backbone as a model of text; nothing is copied."""
        self._backbone = backbone

    def answer_loss(self, conversations: Sequence[Messages], answers: Sequence[str]) -> Tensor:
        """How unlikely each answer is, its end included; what came before it is read and not learned.

        Returns:
            -log of the probability of all tokens of the answer and of the end behind it, in nats, shape (B,).

        Raises:
            DataError: If a conversation with its answer is longer than the model reads.
        """
        end = [self._backbone.end_of_text]
        written = [self._backbone.tokenize(answer) + end for answer in answers]
        return -self._log_likelihood([self._backbone.chat_ids(messages) for messages in conversations], written)

    def scores(self, conversations: Sequence[Messages], answers: Sequence[str]) -> Tensor:
        """How likely the model is to go on with each of C answers.

        Returns:
            Log of the probability of each answer's tokens, in nats, shape (B, C). Answers of one token each are read
            off one pass; others take one pass each.

        Raises:
            DataError: If one answer begins another, whose scores could then not be compared.
        """
        tokens = [self._backbone.tokenize(answer) for answer in answers]
        for one, other in permutations(range(len(tokens)), 2):
            if tokens[other][: len(tokens[one])] == tokens[one]:
                raise DataError(
                    f"to this model the answer {answers[one]!r} is the beginning of {answers[other]!r}; choose answers "
                    "none of which begins another"
                )
        prompts = [self._backbone.chat_ids(messages) for messages in conversations]
        if all(len(own) == 1 for own in tokens):
            likely = self._hidden(prompts, [len(prompt) - 1 for prompt in prompts], [1] * len(prompts))
            logits = self._backbone.text_logits(likely).log_softmax(-1)
            return logits[:, torch.tensor([own[0] for own in tokens], device=logits.device)]
        columns = [self._log_likelihood(prompts, [own] * len(prompts)) for own in tokens]
        return torch.stack(columns, dim=1)

    def _log_likelihood(self, prompts: Sequence[list[int]], written: Sequence[list[int]]) -> Tensor:
        """Of the tokens that are written behind each prompt, added up, shape (B,)."""
        rows = [prompt + own for prompt, own in zip(prompts, written, strict=True)]
        lengths = [len(own) for own in written]
        hidden = self._hidden(rows, [len(prompt) - 1 for prompt in prompts], lengths)
        target = torch.tensor([token for own in written for token in own], device=hidden.device)
        likely = -functional.cross_entropy(self._backbone.text_logits(hidden), target, reduction="none")
        return torch.stack([own.sum() for own in likely.split(lengths)])

    def _hidden(self, rows: Sequence[list[int]], first: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Hidden vectors at some places of each row, one row's after the other's, shape (N, H)."""
        self._backbone.require_room(max(map(len, rows)))
        # Padded behind, where no token that counts can see it.
        token_ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        vectors = self._backbone.embed_tokens(token_ids)
        size, device = token_ids.shape[1], vectors.device
        positions = torch.arange(size, device=device).expand(len(rows), -1)
        causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()[None, None]
        hidden = self._backbone(vectors, positions, causal)
        places = zip(hidden, first, lengths, strict=True)
        return torch.cat([row[start : start + length] for row, start, length in places])
