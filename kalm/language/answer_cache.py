"""What language models were asked and what they replied: a sqlite file that many processes share, and its export.

A reply is stored the moment it comes and never overwritten, so that whoever asks again, after a kill or in another
process, gets the same one without a call. In write-ahead mode readers do not wait for writers.

The export is JSON lines, one reply each with model and question in full, sorted by key: it ships with an experiment,
and ``RecordedAnswers`` replays it without a model.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from kalm.core.durable import write_durably
from kalm.core.errors import DataError, KalmError
from kalm.language.language_model import LanguageModel, Question, Reply, question_key

_BUSY_SECONDS = 60
_TABLE = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, question TEXT NOT NULL, reply TEXT NOT NULL, num_tokens INTEGER NOT NULL
) WITHOUT ROWID
"""


class AnswerCache:
    """Replies by key; the file is made when the first one is stored or looked for."""

    def __init__(self, path: str | Path) -> None:
        """Open the file, or begin one.

        Raises:
            DataError: If there is a file that is none of these.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Every statement is its own transaction: a reply that was stored stays stored.
            self._connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self.path} is no cache of answers: {error}. Give another path, or delete it") from error

    def find(self, key: str) -> Reply | None:
        """The reply of a key, if there is one."""
        row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else _reply_of(json.loads(row[0]))

    def store(self, identity: Mapping[str, Any], question: Question, reply: Reply) -> Reply:
        """Keep a reply unless another process was faster; returns the one that is kept."""
        key = question_key(identity, question)
        row = (key, _json(identity), _json(asdict(question)), _json(asdict(reply)), reply.num_tokens)
        self._connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", row)
        kept = self.find(key)
        assert kept is not None
        return kept

    def spent(self, identity: Mapping[str, Any]) -> tuple[int, int]:
        """Calls and tokens that all replies of a model took."""
        select = "SELECT COUNT(*), COALESCE(SUM(num_tokens), 0) FROM replies WHERE model = ?"
        calls, tokens = self._connection.execute(select, (_json(identity),)).fetchone()
        return int(calls), int(tokens)

    def export(self, path: str | Path) -> int:
        """Write every reply as a line of JSON, sorted by key; returns how many there are."""
        rows = self._connection.execute("SELECT model, question, reply FROM replies ORDER BY key").fetchall()
        lines = [f'{{"model": {model}, "question": {question}, "reply": {reply}}}\n' for model, question, reply in rows]
        write_durably(Path(path), "".join(lines).encode())
        return len(rows)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


class RecordedAnswers(LanguageModel):
    """The replies of one model, out of an export; whatever was not recorded is refused."""

    def __init__(self, path: str, model: str | None = None) -> None:
        """Read the file.

        Args:
            path: JSON lines that a cache exported.
            model: Name of the model whose replies count, where the file has those of several.

        Raises:
            DataError: If the file is missing or malformed, or holds replies of more than one model.
        """
        self._path = Path(path)
        if not self._path.is_file():
            raise DataError(
                f"{path} does not exist; a cache of answers writes such a file: "
                "python -m kalm.language.answer_cache --cache CACHE --output FILE"
            )
        self._replies: dict[str, Reply] = {}
        models: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
                identity, question, reply = dict(row["model"]), _question_of(row["question"]), _reply_of(row["reply"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"line {number} of {path} is no recorded answer: {error!r}; export it again") from error
            if model is None or identity.get("model") == model:
                models[_json(identity)] = identity
                self._replies[question_key(identity, question)] = reply
        if len(models) != 1:
            found = ", ".join(sorted(str(identity.get("model")) for identity in models.values())) or "none"
            raise DataError(f"{path} must hold the answers of one model; it has those of {found}. Name one by `model`")
        (self._identity,) = models.values()

    @property
    def identity(self) -> dict[str, Any]:
        """That of the model whose replies were recorded."""
        return dict(self._identity)

    def ask(self, questions: Iterable[Question]) -> Iterator[tuple[int, Reply]]:
        """Look every reply up.

        Raises:
            DataError: If one was never recorded.
        """
        for number, question in enumerate(questions):
            reply = self._replies.get(question_key(self._identity, question))
            if reply is None:
                raise not_recorded(question, self._path)
            yield number, reply


def not_recorded(question: Question, path: Path) -> DataError:
    """The error of a question whose reply is not there and must not be asked for."""
    said = question.messages[-1][1]
    return DataError(
        f"no reply to this was recorded in {path}: ...{said[-160:]!r} (answers {list(question.answers)}, temperature "
        f"{question.temperature}, seed {question.seed}, sample {question.sample}). Ask the model itself, by a cache "
        "that is not replayed only"
    )


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _reply_of(data: Mapping[str, Any]) -> Reply:
    return Reply(**{**data, "scores": tuple(data["scores"])})


def _question_of(data: Mapping[str, Any]) -> Question:
    messages = tuple((role, content) for role, content in data["messages"])
    return Question(**{**data, "messages": messages, "answers": tuple(data["answers"])})


def main(arguments: list[str] | None = None) -> int:
    """Export a cache from the command line; returns the exit code."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="python -m kalm.language.answer_cache", description=__doc__)
    parser.add_argument("--cache", type=str, required=True, help="The sqlite file.")
    parser.add_argument("--output", type=str, required=True, help="File to write, JSON lines.")
    config = parser.parse_args(arguments)
    if not Path(config.cache).is_file():
        Console(stderr=True).print(f"{config.cache} does not exist", markup=False, soft_wrap=True)
        return DataError.exit_code
    try:
        with closing(AnswerCache(config.cache)) as cache:
            num_replies = cache.export(config.output)
    except KalmError as error:
        Console(stderr=True).print(str(error), markup=False, soft_wrap=True)
        return error.exit_code
    Console().print(f"{config.output}: {num_replies} replies", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
