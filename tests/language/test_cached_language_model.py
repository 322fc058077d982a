"""No question is put twice: not in a batch, not in another process, not after a kill; and no more than was allowed."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from kalm.core.errors import DataError, KalmError
from kalm.language import answer_cache
from kalm.language.answer_cache import AnswerCache, RecordedAnswers
from kalm.language.cached_language_model import CachedLanguageModel
from kalm.language.language_model import Question, Reply
from kalm.language.server_language_model import ServerLanguageModel
from tests.language.scripted_model import ScriptedModel, echo
from tests.language.servers import ErringServer


def conversations(*texts: str) -> list[list[dict[str, str]]]:
    """One user's message each."""
    return [[{"role": "user", "content": text}] for text in texts]


def texts_of(replies: list[list[Reply]]) -> list[str]:
    """Of the only reply to each."""
    return [reply.text for (reply,) in replies]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the replies go."""
    return str(tmp_path / "new" / "answers.sqlite")


def test_equal_questions_are_put_once(path: str) -> None:
    """Twice in a batch, again later, and by a second memory on the same file; texts and scores alike."""
    model = ScriptedModel(num_at_once=2)
    cached = CachedLanguageModel(model, path)
    assert texts_of(cached.generate(conversations("ab", "cd", "ab"))) == ["ba 0", "dc 0", "ba 0"]
    assert len(model.asked) == 2
    again = CachedLanguageModel(model, path)
    assert texts_of(again.generate(conversations("cd", "ef"))) == ["dc 0", "fe 0"]
    assert len(model.asked) == 3
    for _ in range(2):
        assert again.score(conversations("ab"), ["x", "yz"]).tolist() == [[-1.0, -2.0]]
    assert len(model.asked) == 4
    assert again.identity == model.identity


def test_another_model_s_replies_are_its_own(path: str) -> None:
    """In one file."""
    models = [ScriptedModel(name=name) for name in "ab"]
    for model in models:
        CachedLanguageModel(model, path).generate(conversations("x"))
    assert [len(model.asked) for model in models] == [1, 1]


def test_a_replay_asks_nobody(path: str) -> None:
    """What is there comes, all else is an error that shows the question."""
    CachedLanguageModel(ScriptedModel(), path).generate(conversations("ab"))
    model = ScriptedModel()
    replay = CachedLanguageModel(model, path, is_replay=True)
    assert texts_of(replay.generate(conversations("ab"))) == ["ba 0"]
    with pytest.raises(DataError, match="no reply to this was recorded in .*'new question'.*Ask the model itself"):
        replay.generate(conversations("ab", "new question"))
    assert not model.asked


def test_the_first_reply_of_two_processes_counts(path: str) -> None:
    """Both asked at the same time; the later one takes the reply that is there."""

    def overtaken(question: Question) -> Reply:
        with closing(AnswerCache(path)) as other:
            other.store(ScriptedModel().identity, question, Reply("the first"))
        return Reply("the second")

    assert texts_of(CachedLanguageModel(ScriptedModel(overtaken), path).generate(conversations("x"))) == ["the first"]


def test_a_run_that_broke_off_goes_on_with_what_is_missing(path: str) -> None:
    """The model fails at the third question of four: two replies are kept, and two questions are left."""

    def fails(question: Question) -> Reply:
        if question.messages[0][1] == "c":
            raise KalmError("out of order")
        return echo(question)

    with pytest.raises(KalmError, match="out of order"):
        CachedLanguageModel(ScriptedModel(fails), path).generate(conversations(*"abcd"))
    model = ScriptedModel()
    assert texts_of(CachedLanguageModel(model, path).generate(conversations(*"abcd"))) == ["a 0", "b 0", "c 0", "d 0"]
    assert [question.messages[0][1] for question in model.asked] == ["c", "d"]


@pytest.mark.parametrize(("limit", "asked"), [({"max_calls": 3}, 3), ({"max_tokens": 25}, 3)], ids=["calls", "tokens"])
def test_a_budget_ends_and_a_larger_one_goes_on(path: str, limit: dict[str, int], asked: int) -> None:
    """Ten tokens a call: three calls are all, or reach 25 tokens; those three are kept, in every later run too."""
    model = ScriptedModel()
    for _ in range(2):
        with pytest.raises(KalmError, match="budget .* is spent.*goes on where it stopped"):
            CachedLanguageModel(model, path, **limit).generate(conversations(*"abcde"))
        assert len(model.asked) == asked
    larger = {name: value * 10 for name, value in limit.items()}
    assert len(CachedLanguageModel(model, path, **larger).generate(conversations(*"abcde"))) == 5
    assert len(model.asked) == 5


def test_calls_under_way_are_counted_in_the_budget() -> None:
    """Four at a time by a server, of which three are allowed: three arrive there."""
    with ErringServer(seconds=0.02) as server:
        path = ":memory:"
        model = CachedLanguageModel(ServerLanguageModel("m", server.url, num_at_once=4), path, max_calls=3)
        with pytest.raises(KalmError, match="max_calls is 3"):
            model.generate(conversations(*"abcdef"))
        assert len(server.bodies) == 3


def test_tokens_that_nobody_counts_cannot_be_limited(path: str) -> None:
    """Zero tokens are no reply's."""
    model = CachedLanguageModel(ScriptedModel(lambda _: Reply("x")), path, max_tokens=100)
    with pytest.raises(KalmError, match="does not say how many it used; limit max_calls"):
        model.generate(conversations("a"))
    with pytest.raises(KalmError, match="max_calls is 0"):
        CachedLanguageModel(ScriptedModel(), path, max_calls=0)


_KILLED = """
import sys
from kalm.language.cached_language_model import CachedLanguageModel
from kalm.language.server_language_model import ServerLanguageModel
from tests.language.test_cached_language_model import conversations
model = CachedLanguageModel(ServerLanguageModel("m", sys.argv[1], num_at_once=2), sys.argv[2])
model.generate(conversations(*map(str, range(40))))
"""


def test_a_killed_process_loses_only_what_was_under_way(path: str) -> None:
    """SIGKILL after some replies of a server, two at a time: of forty questions at most two are put twice."""
    with ErringServer(seconds=0.05) as server:
        process = subprocess.Popen([sys.executable, "-c", _KILLED, server.url, path])
        deadline = time.monotonic() + 60
        while len(server.bodies) < 8 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        model = CachedLanguageModel(ServerLanguageModel("m", server.url, num_at_once=2), path)
        replies = texts_of(model.generate(conversations(*map(str, range(40)))))
        assert replies == [f"reply to {number}" for number in range(40)]
        assert set(server.asked) == set(map(str, range(40)))
        assert 40 <= len(server.asked) <= 42


def test_the_file_is_in_write_ahead_mode_and_nothing_else_is_taken_for_it(path: str, tmp_path: Path) -> None:
    """Readers do not wait for writers; a file of another kind is refused."""
    CachedLanguageModel(ScriptedModel(), path).generate(conversations("a"))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other = tmp_path / "notes.txt"
    other.write_text("not a database, and long enough not to be taken for an empty one" * 20)
    with pytest.raises(DataError, match="notes.txt is no cache of answers"):
        AnswerCache(other)


def test_an_export_replays_without_the_model(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command line; in one order, whatever came first; questions in full, and an error for any other."""
    cached = CachedLanguageModel(ScriptedModel(), path)
    expected = cached.generate(conversations("b", "a"), temperature=1.0, seed=3, num_samples=2)
    scores = cached.score(conversations("ü"), ["x", "yz"])
    export = tmp_path / "answers.jsonl"
    assert answer_cache.main(["--cache", path, "--output", str(export)]) == 0
    assert "5 replies" in capsys.readouterr().out
    rows = [json.loads(line) for line in export.read_text(encoding="utf-8").splitlines()]
    assert {row["question"]["messages"][0][1] for row in rows} == {"a", "b", "ü"}
    recorded = RecordedAnswers(str(export))
    assert recorded.identity == ScriptedModel().identity
    assert recorded.generate(conversations("b", "a"), temperature=1.0, seed=3, num_samples=2) == expected
    assert recorded.score(conversations("ü"), ["x", "yz"]).tolist() == scores.tolist()
    with pytest.raises(DataError, match="no reply to this was recorded in .*seed 4"):
        recorded.generate(conversations("b"), temperature=1.0, seed=4)


def test_recorded_answers_are_of_one_model(path: str, tmp_path: Path) -> None:
    """Of two it must be said which; a file that is missing or broken says how to make one."""
    for name in ("one", "two"):
        CachedLanguageModel(ScriptedModel(name=name), path).generate(conversations("ab"))
    export = tmp_path / "answers.jsonl"
    with closing(AnswerCache(path)) as cache:
        assert cache.export(export) == 2
    with pytest.raises(DataError, match="of one model; it has those of one, two"):
        RecordedAnswers(str(export))
    assert RecordedAnswers(str(export), model="two").identity["model"] == "two"
    with pytest.raises(DataError, match="it has those of none"):
        RecordedAnswers(str(export), model="three")
    with pytest.raises(DataError, match="does not exist; .*python -m kalm.language.answer_cache"):
        RecordedAnswers(str(tmp_path / "absent.jsonl"))
    export.write_text('{"model": {}}\n')
    with pytest.raises(DataError, match="line 1 of .* is no recorded answer"):
        RecordedAnswers(str(export))
    assert answer_cache.main(["--cache", str(tmp_path / "absent"), "--output", str(export)]) == DataError.exit_code
