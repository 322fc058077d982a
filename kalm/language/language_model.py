"""The port for text: conversations in; text, or log-probabilities of given answers, out.

Whoever judges, labels, writes or acts by words asks a ``LanguageModel`` and does not know which one it is: the loaded
model that grounding uses (``kalm.llm.local_language_model``), one behind a server (``server_language_model``), answers
that were recorded (``answer_cache``), or any of them with a memory (``cached_language_model``).

Shape letters: B conversations, C answers.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError, require

Messages = Sequence[Mapping[str, str]]  # each with a role (system, user, assistant) and its content, in order


@dataclass(frozen=True)
class Question:
    """One call: everything that decides its reply, but for the model.

    Attributes:
        messages: Role and content of each message, in order.
        answers: What may be answered; all texts if there are none.
        is_scored: Whether the log-probability of each answer is asked for, rather than one of them.
        max_tokens: Most tokens of a text.
        temperature: A text is drawn from probabilities to the power of 1 over it; 0 takes the likeliest token.
        seed: Decides what is drawn.
        sample: Number of the draw, of several by one seed.
    """

    messages: tuple[tuple[str, str], ...]
    answers: tuple[str, ...] = ()
    is_scored: bool = False
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    sample: int = 0

    def __post_init__(self) -> None:
        """Check what every model would refuse.

        Raises:
            KalmError: If a number is out of range.
            DataError: If there is no message, or one answer begins another.
        """
        require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        require(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        if not self.messages:
            raise DataError("a conversation has no message; a model can only be asked something")
        if self.is_scored and len(self.answers) < 2:
            raise DataError(f"answers are {list(self.answers)}; scores need at least two to compare")
        require_apart(self.answers)

    @property
    def conversation(self) -> list[dict[str, str]]:
        """Its messages as chat templates and servers take them."""
        return [{"role": role, "content": content} for role, content in self.messages]


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: What was written; of a question with answers one of them.
        scores: Log-probability of each answer, in nats, where scores were asked for.
        is_cut: Whether the text ran into ``max_tokens``.
        num_tokens: That were read and written for it; 0 where the model does not say.
    """

    text: str = ""
    scores: tuple[float, ...] = ()
    is_cut: bool = False
    num_tokens: int = 0


class LanguageModel(ABC):
    """Answers questions. A subclass says how (``ask``), and who it is (``identity``)."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Plain JSON types that decide its replies: model, revision, weights; kept with all that came of it."""

    @abstractmethod
    def ask(self, questions: Iterable[Question]) -> Iterator[tuple[int, Reply]]:
        """Answer all questions, in any order; each reply comes with the number of its question, as soon as it is there.

        Questions are taken one by one as there is room for them. Where taking one raises an error, those that were
        taken before are still answered.
        """

    def generate(
        self,
        conversations: Sequence[Messages],
        answers: Sequence[str] = (),
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        num_samples: int = 1,
    ) -> list[list[Reply]]:
        """Go on with B conversations.

        Args:
            conversations: What was said.
            answers: The only texts that may be written; all if there are none.
            max_tokens: Most tokens of a text.
            temperature: See ``Question``.
            seed: Decides what is drawn.
            num_samples: Replies to each conversation; more than one only where they are drawn.

        Returns:
            B lists of ``num_samples`` replies.
        """
        require(num_samples >= 1, "num_samples", num_samples, "at least 1")
        require(num_samples == 1 or temperature > 0, "num_samples", num_samples, "1 at temperature 0")
        is_drawn = temperature > 0
        questions = [
            Question(_pairs(messages), tuple(answers), False, max_tokens, temperature, seed if is_drawn else 0, sample)
            for messages in conversations
            for sample in range(num_samples)
        ]
        replies = self._all(questions)
        return [replies[first : first + num_samples] for first in range(0, len(replies), num_samples)]

    def score(self, conversations: Sequence[Messages], answers: Sequence[str]) -> NDArray[np.float64]:
        """How likely it is to go on with each of C answers.

        Returns:
            Log-probabilities, in nats, shape (B, C).

        Raises:
            DataError: If one answer begins another, whose scores could then not be compared.
        """
        questions = [Question(_pairs(messages), tuple(answers), is_scored=True) for messages in conversations]
        scores = [reply.scores for reply in self._all(questions)]
        return np.array(scores, dtype=np.float64).reshape(len(questions), len(answers))

    def _all(self, questions: Sequence[Question]) -> list[Reply]:
        replies = dict(self.ask(questions))
        return [replies[number] for number in range(len(questions))]


def question_key(identity: Mapping[str, Any], question: Question) -> str:
    """SHA-256 of model and question: equal keys, equal replies."""
    written = json.dumps([dict(identity), asdict(question)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(written.encode()).hexdigest()


def require_apart(answers: Sequence[str]) -> None:
    """Refuse answers that cannot be told apart.

    Raises:
        DataError: If one is empty, or begins another: it would be at least as likely, whatever a model thinks.
    """
    if "" in answers:
        raise DataError("an answer is empty; a model that writes nothing says nothing")
    for one, other in permutations(answers, 2):
        if other.startswith(one):
            raise DataError(
                f"the answer {one!r} is the beginning of {other!r}; choose answers none of which begins another"
            )


def _pairs(messages: Messages) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], message["content"]) for message in messages)
