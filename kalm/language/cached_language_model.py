"""A language model with a memory and a purse: no question is put to it twice, and no more than was allowed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from kalm.core.errors import KalmError, require
from kalm.language.answer_cache import AnswerCache, not_recorded
from kalm.language.language_model import LanguageModel, Question, Reply, question_key


class CachedLanguageModel(LanguageModel):
    """Another language model, whose replies are kept in a file.

    A process that is killed loses only the replies that had not come back; the next one goes on with the others.
    """

    def __init__(
        self,
        model: LanguageModel,
        path: str,
        is_replay: bool = False,
        max_calls: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Name the model and the file.

        Args:
            model: Who is asked what the file does not know.
            path: The file; any number of models and processes may share one.
            is_replay: Never ask the model; a reply that the file does not have is an error.
            max_calls: Replies of this model in the file from which on it is asked no more, whoever asked for them.
            max_tokens: The same for tokens that were read and written; calls under way may exceed it.

        Raises:
            KalmError: If a limit is below 1.
        """
        for name, limit in (("max_calls", max_calls), ("max_tokens", max_tokens)):
            require(limit is None or limit >= 1, name, limit, "at least 1, or null for no limit")
        self._model, self._is_replay = model, is_replay
        self._max_calls, self._max_tokens = max_calls, max_tokens
        self._path = path

    @property
    def identity(self) -> dict[str, Any]:
        """The model's: a memory changes no reply."""
        return self._model.identity

    def ask(self, questions: Iterable[Question]) -> Iterator[tuple[int, Reply]]:
        """Look replies up, and ask for the others, each of several equal ones once.

        Raises:
            DataError: In a replay, if a reply is not there.
            KalmError: If the budget is spent; all replies up to there are kept.
        """
        cache, identity = AnswerCache(self._path), self.identity
        try:
            numbers_of: dict[Question, list[int]] = {}
            for number, question in enumerate(questions):
                known = None if question in numbers_of else cache.find(question_key(identity, question))
                if known is not None:
                    yield number, known
                else:
                    numbers_of.setdefault(question, []).append(number)
            missing = list(numbers_of)
            if missing and self._is_replay:
                raise not_recorded(missing[0], cache.path)
            purse = _Purse(*cache.spent(identity), self._max_calls, self._max_tokens)
            for place, reply in self._model.ask(purse.allowed(missing)):
                kept = cache.store(identity, missing[place], reply)
                purse.pay(reply)
                for number in numbers_of[missing[place]]:
                    yield number, kept
        finally:
            cache.close()


class _Purse:
    """What was spent, and what may be."""

    def __init__(self, num_calls: int, num_tokens: int, max_calls: int | None, max_tokens: int | None) -> None:
        self._num_calls, self._num_tokens, self._num_under_way = num_calls, num_tokens, 0
        self._max_calls, self._max_tokens = max_calls, max_tokens

    def allowed(self, questions: Sequence[Question]) -> Iterator[Question]:
        """One question after the other, until the budget is spent."""
        for question in questions:
            calls = self._num_calls + self._num_under_way
            for name, spent, limit in (
                ("max_calls", calls, self._max_calls),
                ("max_tokens", self._num_tokens, self._max_tokens),
            ):
                if limit is not None and spent >= limit:
                    raise KalmError(
                        f"the budget of the language model is spent: {name} is {limit}, and {spent} were used. All "
                        f"replies are kept: set {name} higher and run the same again, it goes on where it stopped"
                    )
            self._num_under_way += 1
            yield question

    def pay(self, reply: Reply) -> None:
        """Count a reply.

        Raises:
            KalmError: If tokens are limited and nobody says how many there were.
        """
        if self._max_tokens is not None and not reply.num_tokens:
            raise KalmError(
                "max_tokens limits the tokens, but the language model does not say how many it used; limit max_calls"
            )
        self._num_under_way -= 1
        self._num_calls += 1
        self._num_tokens += reply.num_tokens
