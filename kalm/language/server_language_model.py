"""A language model behind a server that speaks OpenAI's protocol: vLLM, llama.cpp, `transformers serve`, a provider's.

Many questions are under way at a time. Retries, with growing pauses and with those that a busy server asks for, are the
``openai`` client's. What a server does not do is found out, and never taken for an answer: many ignore what they do not
know, so that scores are read off probabilities that are really there, and a constrained answer is looked at.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from kalm.core.errors import DataError, KalmError, require
from kalm.language.language_model import LanguageModel, Question, Reply

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAIError
    from openai.types.chat import ChatCompletion

_NO_KEY = "none"  # servers on one's own machine want no key, the client wants some
_TOO_MUCH = 1.01  # probabilities of different tokens add up to 1 at most, but for rounding
_JSON_TOKENS = 64  # around a constrained answer
_ANSWER = "answer"  # key of a constrained answer's JSON object


class ServerLanguageModel(LanguageModel):
    """Asks a server over HTTP."""

    def __init__(
        self,
        model: str,
        base_url: str = "http://127.0.0.1:8000/v1",
        revision: str = "",
        api_key_variable: str = "OPENAI_API_KEY",
        num_at_once: int = 8,
        max_retries: int = 5,
        timeout_seconds: float = 120.0,
        num_alternatives: int = 20,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Name the model and the server; nothing is sent yet.

        Args:
            model: Name by which the server knows it.
            base_url: Where the server listens, with ``/v1``.
            revision: Which weights these are, in your own words: a server does not tell. Part of what replies are
                remembered by.
            api_key_variable: Environment variable that holds the key, if the server wants one.
            num_at_once: Questions under way at a time.
            max_retries: Times a question is repeated that a server was too busy for, or that got lost.
            timeout_seconds: How long to wait for one reply.
            num_alternatives: Tokens whose probabilities are asked for; OpenAI allows 20. Scores are read off these.
            extra: More fields of every request, such as ``{chat_template_kwargs: {enable_thinking: false}}``.

        Raises:
            KalmError: If a number is out of range.
        """
        require(num_at_once >= 1, "num_at_once", num_at_once, "at least 1")
        require(max_retries >= 0, "max_retries", max_retries, "0 or more")
        require(timeout_seconds > 0, "timeout_seconds", timeout_seconds, "above 0")
        require(num_alternatives >= 2, "num_alternatives", num_alternatives, "2 or more, so that there is a choice")
        self._model, self._revision, self._base_url = model, revision, base_url
        self._num_at_once, self._num_alternatives, self._extra = num_at_once, num_alternatives, dict(extra or {})
        self._key_variable = api_key_variable
        self._max_retries, self._timeout_seconds = max_retries, timeout_seconds

    @property
    def identity(self) -> dict[str, Any]:
        """Names of model and revision, and what decides its replies; not where the server is."""
        names = {"kind": "server", "model": self._model, "revision": self._revision}
        return {**names, "num_alternatives": self._num_alternatives, "extra": self._extra}

    def ask(self, questions: Iterable[Question]) -> Iterator[tuple[int, Reply]]:
        """Ask ``num_at_once`` questions at a time.

        Raises:
            KalmError: If the server cannot be reached, refuses, or does not do what was asked; replies that were under
                way come first.
            DataError: If two answers begin alike, so that their scores cannot be told apart.
        """
        with asyncio.Runner() as runner:
            replies = self._ask(questions)
            try:
                while True:
                    yield runner.run(anext(replies))  # type: ignore[arg-type] # an awaitable is enough
            except StopAsyncIteration:
                return
            finally:
                runner.run(replies.aclose())  # type: ignore[attr-defined]

    async def _ask(self, questions: Iterable[Question]) -> AsyncIterator[tuple[int, Reply]]:
        from openai import AsyncOpenAI  # brings pydantic

        waiting = enumerate(questions)
        failure: BaseException | None = None
        under_way: set[asyncio.Task[tuple[int, Reply]]] = set()
        async with AsyncOpenAI(
            api_key=os.environ.get(self._key_variable) or _NO_KEY,
            base_url=self._base_url,
            max_retries=self._max_retries,
            timeout=self._timeout_seconds,
        ) as client:
            try:
                while True:
                    try:
                        room = self._num_at_once - len(under_way) if failure is None else 0
                        for number, question in islice(waiting, room):
                            under_way.add(asyncio.create_task(self._reply(client, number, question)))
                    except KalmError as spent:
                        failure = spent
                    if not under_way:
                        break
                    done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        error = task.exception()
                        if error is None:
                            yield task.result()
                        else:
                            failure = failure or error
            finally:
                for task in under_way:
                    task.cancel()
        if failure is not None:
            raise failure

    async def _reply(self, client: AsyncOpenAI, number: int, question: Question) -> tuple[int, Reply]:
        from openai import OpenAIError

        try:
            completion = await client.chat.completions.create(**self._request(question))
        except OpenAIError as error:
            raise self._explained(error) from error
        num_tokens = completion.usage.total_tokens if completion.usage else 0
        if question.is_scored:
            return number, Reply(
                scores=scores_of(question.answers, self._alternatives(completion)), num_tokens=num_tokens
            )
        choice = completion.choices[0]
        text = choice.message.content or ""
        if question.answers:
            return number, Reply(self._one_of(question.answers, text), num_tokens=num_tokens)
        return number, Reply(text, is_cut=choice.finish_reason == "length", num_tokens=num_tokens)

    def _request(self, question: Question) -> dict[str, Any]:
        request: dict[str, Any] = {"model": self._model, "messages": question.conversation, "extra_body": self._extra}
        if question.is_scored:
            # At temperature 1, for some servers tell the probabilities that they draw by.
            alternatives = {"logprobs": True, "top_logprobs": self._num_alternatives}
            return {**request, "max_tokens": 1, "temperature": 1.0, **alternatives}
        request |= {"max_tokens": question.max_tokens, "temperature": question.temperature, "seed": _seed_of(question)}
        if question.answers:  # no token is shorter than a byte
            room = _JSON_TOKENS + max(len(answer.encode()) for answer in question.answers)
            request |= {"max_tokens": room, "response_format": _response_format(question.answers)}
        return request

    def _alternatives(self, completion: ChatCompletion) -> dict[str, float]:
        """Log-probabilities of the likeliest first tokens, by their text."""
        told = completion.choices[0].logprobs
        first = told.content[0] if told is not None and told.content else None
        listed = {} if first is None else {entry.token: entry.logprob for entry in first.top_logprobs or []}
        if len(listed) < 2:
            raise KalmError(
                f"the server at {self._base_url} returned no log-probabilities of {self._model} (top_logprobs), "
                "without which answers cannot be scored. Use one that does, such as vLLM or llama.cpp, or ask for a "
                "text instead of scores"
            )
        total = math.fsum(math.exp(value) for value in listed.values())
        if not total <= _TOO_MUCH or any(value > 0 for value in listed.values()):
            raise KalmError(
                f"the server at {self._base_url} returned log-probabilities of {self._model} that are none: "
                f"{dict(list(listed.items())[:4])}, whose probabilities add up to {total:.3g}. Use another server, or "
                "ask for a text instead of scores"
            )
        return listed

    def _one_of(self, answers: Sequence[str], text: str) -> str:
        """The answer in a constrained reply."""
        try:
            answer = json.loads(text)[_ANSWER]
        except (ValueError, TypeError, KeyError):
            answer = None
        if answer not in answers:
            raise KalmError(
                f"the server at {self._base_url} does not keep to a JSON schema (response_format): it was to answer "
                f"one of {', '.join(answers)}, and wrote {text[:80]!r}. Use one that does, such as vLLM or llama.cpp, "
                "or let it write freely and read its text"
            )
        return str(answer)

    def _explained(self, error: OpenAIError) -> KalmError:
        import openai

        where = f"the language model {self._model} at {self._base_url}"
        if isinstance(error, openai.APIConnectionError):
            return KalmError(
                f"{where} does not answer: {error} Start its server, for example `vllm serve {self._model}` or "
                "`llama-server -m FILE.gguf`, and give its address as base_url, with /v1"
            )
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            has_key = "holds no key" if not os.environ.get(self._key_variable) else "holds a key that it does not take"
            return KalmError(f"{where} refuses: {error}. The environment variable {self._key_variable} {has_key}")
        if isinstance(error, openai.RateLimitError):
            return KalmError(
                f"{where} is too busy, also after {self._max_retries} retries: {error}. Set "
                "num_at_once lower and run the same again: what a cache has is not asked again"
            )
        return KalmError(f"{where} could not be asked: {error}. Compare its name and settings with the server's")


def scores_of(answers: Sequence[str], alternatives: Mapping[str, float]) -> tuple[float, ...]:
    """Log-probability of each answer, read off the likeliest first tokens.

    An answer that is a token of the list has the token's. Any other has the least that it cannot exceed, for nobody
    knows its tokens: the likeliest token of the list that begins it, or the unlikeliest of all where none does.

    Args:
        answers: C texts.
        alternatives: Log-probability of each listed token, in nats, by its text.

    Raises:
        DataError: If two answers are bounded by the same token, so that nothing tells them apart.
    """
    lowest = min(alternatives.values())
    bounded_by: dict[str, str] = {}
    scores = []
    for answer in answers:
        beginnings = [token for token in alternatives if token and answer.startswith(token)]
        if answer in alternatives or not beginnings:
            scores.append(alternatives.get(answer, lowest))
            continue
        token = max(beginnings, key=alternatives.__getitem__)
        if token in bounded_by:
            raise DataError(
                f"to this model the answers {bounded_by[token]!r} and {answer!r} both begin with {token!r}, so that a "
                "server's scores do not tell them apart; choose answers of one token each, such as True and False"
            )
        bounded_by[token] = answer
        scores.append(alternatives[token])
    return tuple(scores)


def _response_format(answers: Sequence[str]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {_ANSWER: {"type": "string", "enum": list(answers)}},
        "required": [_ANSWER],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": _ANSWER, "strict": True, "schema": schema}}


def _seed_of(question: Question) -> int:
    """One number for seed and sample that servers take."""
    digest = hashlib.sha256(f"{question.seed} {question.sample}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1
