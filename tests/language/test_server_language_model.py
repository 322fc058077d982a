"""Servers that are there: llama.cpp's and that of transformers, each on a small model; and one that errs on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kalm.core.errors import DataError, KalmError
from kalm.language.language_model import Question
from kalm.language.server_language_model import ServerLanguageModel, scores_of
from kalm.llm.local_language_model import LocalLanguageModel
from tests.language.servers import ErringServer, free_port, llama_cpp_server, transformers_server
from tests.llm.small_gguf import write_gguf
from tests.llm.small_models import backbone, save_chat_model

ANSWERS = ["True", "False", "NA"]
PAIRS = {"is the ball red": "True", "is the ball blue": "False", "is the box big": "NA", "where is it": "on the left"}
CONVERSATIONS = [[{"role": "user", "content": said}] for said in PAIRS]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small llama that learned to reply."""
    return save_chat_model(tmp_path_factory.mktemp("models") / "chat", PAIRS)


@pytest.fixture(scope="module")
def llama_cpp(chat_model: Path) -> Iterator[str]:
    """Llama.cpp's server on it."""
    file = write_gguf(chat_model, chat_model.parent / "chat.gguf")
    with llama_cpp_server(file, chat_model.parent / "llama_cpp.log") as url:
        yield url


@pytest.fixture(scope="module")
def transformers_serve(chat_model: Path) -> Iterator[str]:
    """The server of transformers on it."""
    with transformers_server(chat_model, chat_model.parent / "transformers.log") as url:
        yield url


def test_a_server_s_scores_are_those_of_the_same_model_here(llama_cpp: str, chat_model: Path) -> None:
    """Each answer is one token and among the likeliest: equal up to rounding, and right."""
    local = LocalLanguageModel(backbone(chat_model, tuning="full"))
    served = ServerLanguageModel("chat", llama_cpp)
    expected, found = local.score(CONVERSATIONS[:3], ANSWERS), served.score(CONVERSATIONS[:3], ANSWERS)
    assert found.argmax(axis=1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.max(axis=1), expected.max(axis=1), atol=0.02)
    assert (found >= expected - 0.05).all()  # what is not listed has a bound


def test_a_server_writes_what_the_model_writes_here(llama_cpp: str, chat_model: Path) -> None:
    """The likeliest tokens, and how many there were; a limit of tokens cuts, and says so."""
    local = LocalLanguageModel(backbone(chat_model, tuning="full"))
    served = ServerLanguageModel("chat", llama_cpp, num_at_once=2)
    (expected,), (found,) = (model.generate(CONVERSATIONS[3:], max_tokens=40) for model in (local, served))
    assert found[0].text == expected[0].text == "on the left"
    assert not found[0].is_cut
    assert found[0].num_tokens > 4
    ((cut,),) = served.generate(CONVERSATIONS[3:], max_tokens=1)
    assert cut.is_cut
    assert "on the left".startswith(cut.text)


def test_a_constrained_answer_is_one_of_those_that_were_given(llama_cpp: str) -> None:
    """By a JSON schema; also one that the model would never write, and drawn ones, again by the same seed."""
    served = ServerLanguageModel("chat", llama_cpp)
    assert [reply.text for (reply,) in served.generate(CONVERSATIONS, answers=["zebra"])] == ["zebra"] * 4
    drawn = [served.generate(CONVERSATIONS, ANSWERS, temperature=5.0, seed=3, num_samples=4) for _ in range(2)]
    assert drawn[0] == drawn[1]
    texts = {reply.text for replies in drawn[0] for reply in replies}
    assert len(texts) > 1
    assert texts <= set(ANSWERS)


def test_a_server_without_log_probabilities_is_found_out(transformers_serve: str, chat_model: Path) -> None:
    """It overlooks the request and replies; its texts are good, its scores would be made up."""
    served = ServerLanguageModel(str(chat_model), transformers_serve, max_retries=0)
    ((reply,),) = served.generate(CONVERSATIONS[3:], max_tokens=40)
    assert reply.text == "on the left"
    with pytest.raises(KalmError, match="returned no log-probabilities .* Use one that does"):
        served.score(CONVERSATIONS, ANSWERS)
    with pytest.raises(KalmError, match="does not keep to a JSON schema .* wrote 'on the left'"):
        served.generate(CONVERSATIONS[3:], answers=ANSWERS)


@pytest.mark.parametrize(
    ("alternatives", "error"),
    [
        ([{"token": "True", "logprob": 0.0}, {"token": "False", "logprob": 0.0}], "that are none.*add up to 2"),
        ([{"token": "True", "logprob": 0.5}, {"token": "False", "logprob": -9.0}], "that are none"),
        ([{"token": "True", "logprob": 0.0}], "returned no log-probabilities"),
    ],
    ids=["zeros", "above one", "the chosen one alone"],
)
def test_numbers_that_are_no_probabilities_are_refused(alternatives: list[dict[str, object]], error: str) -> None:
    """Two tokens that are both certain, one that is more than certain, one without a choice."""
    full = [{**entry, "bytes": None} for entry in alternatives]
    told = {"content": [{"token": "True", "logprob": 0.0, "bytes": None, "top_logprobs": full}]}
    with ErringServer(logprobs=told) as server, pytest.raises(KalmError, match=error):
        ServerLanguageModel("m", server.url).score(CONVERSATIONS[:1], ANSWERS)


def test_many_questions_are_under_way_but_no_more_than_allowed() -> None:
    """Twelve questions of 50 ms, four at a time; each is asked once and gets its own reply."""
    with ErringServer(seconds=0.05) as server:
        conversations = [[{"role": "user", "content": str(number)}] for number in range(12)]
        replies = ServerLanguageModel("m", server.url, num_at_once=4).generate(conversations)
    assert [reply.text for (reply,) in replies] == [f"reply to {number}" for number in range(12)]
    assert 1 < server.most_at_once <= 4
    assert sorted(server.asked, key=int) == [str(number) for number in range(12)]


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once too busy, once broken, then a reply; the key comes from the environment."""
    monkeypatch.setenv("MY_KEY", "secret")
    with ErringServer(failures=[429, 500]) as server:
        model = ServerLanguageModel("m", server.url, api_key_variable="MY_KEY", num_at_once=1, max_retries=2)
        ((reply,),) = model.generate(CONVERSATIONS[:1])
    assert reply.text == "reply to is the ball red"
    assert len(server.bodies) == 3
    assert set(server.keys) == {"Bearer secret"}
    assert "secret" not in str(model.identity)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, "too busy, also after 0 retries.*num_at_once lower"),
        (401, "variable OPENAI_API_KEY holds no key"),
        (404, "could not be asked: .*failure 404"),
    ],
)
def test_errors_say_what_to_do(status: int, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each way in which a server refuses."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ErringServer(failures=[status]) as server, pytest.raises(KalmError, match=error):
        ServerLanguageModel("m", server.url, max_retries=0).generate(CONVERSATIONS[:1])


def test_where_nobody_listens_the_error_says_how_to_start_a_server() -> None:
    """With the address that was tried."""
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(KalmError, match=f"{url} does not answer(.|\n)*vllm serve m"):
        ServerLanguageModel("m", url, max_retries=0).generate(CONVERSATIONS[:1])


def test_what_was_under_way_is_not_lost_when_one_question_fails() -> None:
    """Four at a time, one of which fails at once: the other three come, no fifth is asked."""
    questions = [Question((("user", str(number)),)) for number in range(8)]
    numbers: list[int] = []
    with ErringServer(failures=[404], seconds=2.0) as server:
        replies = ServerLanguageModel("m", server.url, num_at_once=4, max_retries=0).ask(questions)
        with pytest.raises(KalmError, match="failure 404"):
            numbers.extend(number for number, reply in replies if reply.text == f"reply to {number}")
    assert len(server.bodies) == 4
    assert len(numbers) == 3
    assert set(numbers) < {0, 1, 2, 3}


def test_scores_are_read_off_the_list_of_tokens() -> None:
    """Listed; not listed, so at most the unlikeliest; begun by tokens of the list, so at most the likeliest of them."""
    alternatives = {"True": -0.5, "go": -2.0, "g": -3.0, "N": -4.0, "": -5.0, "x": -6.0}
    assert scores_of(["True", "False", "NA", "go left"], alternatives) == (-0.5, -6.0, -4.0, -2.0)
    assert scores_of(["False", "zebra"], alternatives) == (-6.0, -6.0)
    with pytest.raises(DataError, match="'go left' and 'go right' both begin with 'go'"):
        scores_of(["go left", "go right"], alternatives)
    assert scores_of(["g", "go left"], {"g": -1.0, "go": -2.0}) == (-1.0, -1.0)


@pytest.mark.parametrize(
    ("name", "value"), [("num_at_once", 0), ("max_retries", -1), ("timeout_seconds", 0), ("num_alternatives", 1)]
)
def test_numbers_out_of_range_are_refused(name: str, value: int) -> None:
    """Before anything is sent."""
    with pytest.raises(KalmError, match=f"{name} is {value}"):
        ServerLanguageModel("m", **{name: value})  # type: ignore[arg-type]
