"""The port itself: what a question is, and how many of them make a text or a score."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kalm.core.errors import DataError, KalmError
from kalm.language.language_model import Question, question_key
from tests.language.scripted_model import ScriptedModel

CONVERSATIONS = [
    [{"role": "system", "content": "You count."}, {"role": "user", "content": "one"}],
    [{"role": "user", "content": "two"}],
]
QUESTION = Question((("user", "two"),))


def test_replies_come_in_the_order_of_the_conversations() -> None:
    """Also from a model that answers the last question first; several draws of each stand together."""
    model = ScriptedModel(num_at_once=3)
    assert [reply.text for (reply,) in model.generate(CONVERSATIONS)] == ["eno 0", "owt 0"]
    drawn = model.generate(CONVERSATIONS, temperature=0.5, seed=7, num_samples=2)
    assert [[reply.text for reply in own] for own in drawn] == [["eno 0", "eno 1"], ["owt 0", "owt 1"]]
    assert model.asked[0].messages == (("system", "You count."), ("user", "one"))
    assert [(question.seed, question.sample) for question in model.asked[2:]] == [(7, 0), (7, 1), (7, 0), (7, 1)]


def test_scores_are_a_row_a_conversation() -> None:
    """Minus the lengths of the answers, from this model."""
    assert ScriptedModel().score(CONVERSATIONS, ["True", "No"]).tolist() == [[-4.0, -2.0], [-4.0, -2.0]]
    assert ScriptedModel().score([], ["True", "No"]).shape == (0, 2)


def test_a_seed_matters_only_where_something_is_drawn() -> None:
    """Two runs with different seeds ask one question at temperature 0, and two above."""
    model = ScriptedModel()
    for temperature in (0.0, 1.0):
        for seed in (1, 2):
            model.generate(CONVERSATIONS[:1], temperature=temperature, seed=seed)
    assert len(set(model.asked)) == 3
    with pytest.raises(KalmError, match="num_samples is 2; it must be 1 at temperature 0"):
        model.generate(CONVERSATIONS, num_samples=2)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"messages": ()}, "has no message"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"answers": ("go", "go left")}, "'go' is the beginning of 'go left'"),
        ({"answers": ("go", "go")}, "'go' is the beginning of 'go'"),
        ({"answers": ("", "go")}, "an answer is empty"),
        ({"answers": ("go",), "is_scored": True}, "at least two"),
    ],
)
def test_a_question_that_no_model_could_answer_is_refused(changes: dict[str, Any], error: str) -> None:
    """Where it is made, whoever would be asked."""
    with pytest.raises(KalmError, match=error) as caught:
        replace(QUESTION, **changes)
    assert isinstance(caught.value, DataError) or "must be" in str(caught.value)


def test_everything_about_a_question_is_in_its_key() -> None:
    """Model, messages, answers, whether they are scored, length, temperature, seed and sample: nine keys."""
    changes: list[dict[str, Any]] = [
        {},
        {"messages": (("system", "two"),)},
        {"answers": ("a", "b")},
        {"answers": ("a", "b"), "is_scored": True},
        {"max_tokens": 5},
        {"temperature": 1.0},
        {"seed": 1},
        {"sample": 1},
    ]
    keys = [question_key({"model": "m"}, replace(QUESTION, **change)) for change in changes]
    keys.append(question_key({"model": "m", "revision": "2"}, QUESTION))
    assert len(set(keys)) == 9
    assert question_key({"model": "m"}, Question((("user", "two"),))) == keys[0]
