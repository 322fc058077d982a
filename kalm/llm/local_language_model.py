"""The port for text on a loaded model: what is said, how likely each answer is, and the loss of answers to be learned.

``Backbone`` is the port for vectors between text; both look at the same model, in 4 bits or not, with adapters or
without. Messages go through the model's own chat template, and a model that has none is refused: a conversation that is
written in another form than a model was trained on is read wrongly without a word.

Shape letters: B conversations, C answers to choose from, N tokens of answers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from kalm.core.durable import file_sha256
from kalm.core.errors import CheckpointError, DataError, require
from kalm.language.language_model import LanguageModel, Messages, Question, Reply, question_key
from kalm.llm.backbones.backbone import require_same_backbone
from kalm.llm.backbones.hugging_face_backbone import HuggingFaceBackbone
from kalm.runs.acting import draw_actions, uniform_numbers
from kalm.runs.checkpoint_io import VerifiedCheckpointIO
from kalm.runs.folder import find_checkpoint

_BACKBONE = "backbone."  # before the names of its weights in a checkpoint, of grounding and of a student alike


class LocalLanguageModel(LanguageModel):
    """Reads and goes on with conversations."""

    def __init__(
        self,
        backbone: HuggingFaceBackbone,
        checkpoint: str | None = None,
        device: str = "cpu",
        num_at_once: int = 8,
    ) -> None:
        """Look at a backbone as a model of text; nothing is copied, and weights that are not there come when asked.

        Args:
            backbone: The model.
            checkpoint: What it learned: a checkpoint of grounding or of a student, or the folder of its run.
            device: Where weights that are not loaded go, such as ``cuda``.
            num_at_once: Conversations in a batch.

        Raises:
            KalmError: If a number is out of range.
            CheckpointError: If the checkpoint is missing, or of another model.
        """
        require(num_at_once >= 1, "num_at_once", num_at_once, "at least 1")
        self._backbone, self._device, self._num_at_once = backbone, torch.device(device), num_at_once
        self._checkpoint = None if checkpoint is None else find_checkpoint(checkpoint, Path(), "checkpoint")
        self._learned = {"checkpoint_sha256": file_sha256(self._checkpoint)} if self._checkpoint else {}
        self._is_ready = False

    @property
    def identity(self) -> dict[str, Any]:
        """Name and frozen weights of the model, how it computes, and the digest of what it learned."""
        described = self._backbone.description
        # A folder may lie elsewhere on another machine; the digest of its weights is among the rest.
        name = Path(described["model"]).name if Path(described["model"]).is_dir() else described["model"]
        names = {"kind": "local", "model": name, "revision": described["revision"]}
        return {**self._backbone.identity, **names, "compute_type": described["compute_type"], **self._learned}

    def ask(self, questions: Iterable[Question]) -> Iterator[tuple[int, Reply]]:
        """Answer ``num_at_once`` questions at a time; those of a batch that are of one kind are read together.

        What is drawn is a function of the question alone, up to rounding.
        """
        waiting = enumerate(questions)
        while batch := list(islice(waiting, self._num_at_once)):
            self._get_ready()
            kinds: dict[Any, list[tuple[int, Question]]] = {}
            for number, question in batch:
                kinds.setdefault((question.answers, question.is_scored), []).append((number, question))
            for (answers, is_scored), some in kinds.items():
                numbers, asked = zip(*some, strict=True)
                replies = self._choose(asked, answers, is_scored) if answers else self._write(asked)
                yield from zip(numbers, replies, strict=True)

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

    def log_probabilities(self, conversations: Sequence[Messages], answers: Sequence[str]) -> Tensor:
        """``score`` as a tensor that gradients flow through.

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

    def _get_ready(self) -> None:
        """Load what is not loaded; a question is answered without dropout."""
        if not self._is_ready:
            if self._backbone.model is None:
                self._backbone.load(self._device)
            if self._checkpoint is not None:
                _load_learned(self._backbone, self._checkpoint)
            self._is_ready = True
        self._backbone.eval()

    @torch.inference_mode()
    def _choose(self, questions: Sequence[Question], answers: Sequence[str], is_scored: bool) -> list[Reply]:
        """Score the answers, or draw one of them by its probability among them."""
        conversations = [question.conversation for question in questions]
        scores = self.log_probabilities(conversations, answers).double().cpu()
        read = sum(len(self._backbone.tokenize(answer)) for answer in answers)
        num_tokens = [len(self._backbone.chat_ids(messages)) + read for messages in conversations]
        if is_scored:
            return [
                Reply(scores=tuple(row), num_tokens=own) for row, own in zip(scores.tolist(), num_tokens, strict=True)
            ]
        chosen = self._draw(scores, questions, step=0)
        return [Reply(answers[place], num_tokens=own) for place, own in zip(chosen, num_tokens, strict=True)]

    @torch.inference_mode()
    def _write(self, questions: Sequence[Question]) -> list[Reply]:
        """Go on with each conversation, token by token, until its answer ends or is as long as it may be."""
        backbone = self._backbone
        prompts = [backbone.chat_ids(question.conversation) for question in questions]
        lengths, limits = [len(prompt) for prompt in prompts], [question.max_tokens for question in questions]
        vectors = backbone.embed_tokens(pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True))
        cache = backbone.make_cache(len(prompts), vectors.shape[1] + max(limits))
        hidden = backbone.read(vectors, cache)
        places = torch.tensor(lengths, device=hidden.device)
        cache.trim(places)
        hidden = hidden[torch.arange(len(hidden), device=hidden.device), places - 1]
        written: list[list[int]] = [[] for _ in prompts]
        is_open = [True] * len(prompts)
        for step in range(max(limits)):
            token_ids = self._draw(backbone.text_logits(hidden).cpu(), questions, step)
            for row, token_id in enumerate(token_ids):
                if is_open[row]:
                    written[row].append(token_id)
                    is_open[row] = token_id != backbone.end_of_text and len(written[row]) < limits[row]
            if not any(is_open):
                break
            hidden = backbone.read(backbone.embed_tokens(torch.tensor(token_ids))[:, None], cache)[:, 0]
        return [
            Reply(backbone.decode(own), is_cut=own[-1] != backbone.end_of_text, num_tokens=length + len(own))
            for own, length in zip(written, lengths, strict=True)
        ]

    def _draw(self, logits: Tensor, questions: Sequence[Question], step: int) -> list[int]:
        """A place of each row, (B, V) or (B, C), by its question's temperature and its own luck at a step."""
        drawn: list[int] = logits.argmax(-1).tolist()
        for row, question in enumerate(questions):
            if question.temperature > 0:
                own = np.array([int(question_key({}, question)[:16], 16)], dtype=np.uint64)
                luck = uniform_numbers(question.seed, own, np.array([step], dtype=np.uint64), logits.shape[1])
                drawn[row] = int(draw_actions(logits[row : row + 1], luck, question.temperature))
        return drawn

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


def _load_learned(backbone: HuggingFaceBackbone, path: Path) -> None:
    """Take a backbone's weights out of a checkpoint of whatever was trained around it."""
    content = VerifiedCheckpointIO().load_checkpoint(path)
    require_same_backbone(content, backbone)
    learned = {
        name.removeprefix(_BACKBONE): value
        for name, value in content["state_dict"].items()
        if name.startswith(_BACKBONE)
    }
    if not learned:
        raise CheckpointError(f"{path} holds nothing that a language model learned; give one of grounding or a student")
    try:
        backbone.load_state_dict(learned)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is of another language model: {error}") from error
