"""A language model that replies by rule, and notes what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kalm.language.language_model import LanguageModel, Question, Reply

Rule = Callable[[Question], Reply]


def echo(question: Question) -> Reply:
    """The last message, backwards; scores by the length of the answers."""
    text = question.messages[-1][1][::-1]
    scores = tuple(-float(len(answer)) for answer in question.answers) if question.is_scored else ()
    return Reply("" if scores else f"{text} {question.sample}", scores, num_tokens=10)


class ScriptedModel(LanguageModel):
    """Takes ``num_at_once`` questions at a time, and answers the last of them first."""

    def __init__(self, rule: Rule = echo, name: str = "scripted", num_at_once: int = 1) -> None:
        """Name the rule."""
        self._rule, self._name, self._num_at_once = rule, name, num_at_once
        self.asked: list[Question] = []

    @property
    def identity(self) -> dict[str, Any]:  # noqa: D102
        return {"kind": "scripted", "model": self._name}

    def ask(self, questions: Iterable[Question]) -> Iterator[tuple[int, Reply]]:  # noqa: D102
        taken: list[tuple[int, Question]] = []
        for number, question in enumerate(questions):
            self.asked.append(question)
            taken.append((number, question))
            if len(taken) == self._num_at_once:
                yield from self._replies(taken)
        yield from self._replies(taken)

    def _replies(self, taken: list[tuple[int, Question]]) -> Iterator[tuple[int, Reply]]:
        while taken:
            number, question = taken.pop()
            yield number, self._rule(question)
