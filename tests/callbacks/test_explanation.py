"""Explanation accuracy under the prompt of training and under another."""

from __future__ import annotations

from pathlib import Path

import pytest

from kalm.callbacks.explanation import Explanation
from kalm.core.errors import KalmError
from kalm.core.names import Source
from kalm.language.prompts import EXPLANATION, UNSEEN_EXPLANATION
from tests.callbacks.judged import Shown, logged_text, validate, walk

TO_THE_RIGHT = walk([2, 3, 4], [1, 1], goal=4, source=Source.REAL)
TO_THE_LEFT = walk([1, 0], [0], goal=0, source=Source.REAL)
IMAGINED = walk([1, 0], [0], goal=0)


def test_prompts_are_judged_apart(tmp_path: Path) -> None:
    """The truth under the seen prompt: 3 of 3. Always the left end under the unseen one: 1 of 3."""
    module = Shown({UNSEEN_EXPLANATION: "somebody wanted to be at the left end"})
    batches = {"real": [TO_THE_RIGHT, TO_THE_RIGHT]}, {"imaginary": [IMAGINED]}, {"real": [TO_THE_LEFT]}
    metrics = validate(tmp_path, Explanation(), *batches, module=module)
    assert metrics["explain/seen_prompt_accuracy"] == 1.0
    assert metrics["explain/unseen_prompt_accuracy"] == pytest.approx(1 / 3)


def test_every_validation_counts_anew(tmp_path: Path) -> None:
    """The same callback, first on a model that is always wrong, then on one that is right."""
    callback, batch = Explanation(), {"real": [TO_THE_LEFT]}
    wrong = Shown({EXPLANATION: "no idea", UNSEEN_EXPLANATION: "no idea"})
    first = validate(tmp_path, callback, batch, module=wrong)
    second = validate(tmp_path, callback, batch)
    assert set(first.values()) == {0.0}
    assert set(second.values()) == {1.0}
    assert first.keys() == {"explain/seen_prompt_accuracy", "explain/unseen_prompt_accuracy"}


def test_the_best_of_several_answers_is_judged_beside_the_likeliest(tmp_path: Path) -> None:
    """Here several answers are always right, one never."""
    module = Shown({EXPLANATION: "no idea", UNSEEN_EXPLANATION: "no idea"})
    metrics = validate(tmp_path, Explanation(num_answers=4), {"real": [TO_THE_LEFT]}, module=module)
    assert metrics == {
        "explain/seen_prompt_accuracy": 0.0,
        "explain/unseen_prompt_accuracy": 0.0,
        "explain/seen_prompt_best_of_4_accuracy": 1.0,
        "explain/unseen_prompt_best_of_4_accuracy": 1.0,
    }


def test_without_real_rollouts_nothing_is_claimed(tmp_path: Path) -> None:
    """No accuracy of zero rollouts."""
    assert validate(tmp_path, Explanation(), {"imaginary": [IMAGINED]}) == {}


def test_table_shows_what_was_told_and_what_was_said(tmp_path: Path) -> None:
    """The first two of three rollouts over two batches; what a model writes is escaped like any text."""
    module = Shown({EXPLANATION: "<b>go</b> | home"})
    batches = {"real": [TO_THE_RIGHT]}, {"real": [TO_THE_LEFT, TO_THE_RIGHT]}
    validate(tmp_path, Explanation(num_examples=2), *batches, module=module)
    header, _, *rows = logged_text(tmp_path, "explain/examples").split("\n")
    assert header == "told | explained, seen prompt | explained, unseen prompt"
    said = "&lt;b&gt;go&lt;/b&gt; \\| home"
    assert rows == [f"{told} | {said} | {told}" for told in ("go to the right end", "go to the left end")]


def test_numbers_out_of_range_are_refused() -> None:
    """The message names the option."""
    with pytest.raises(KalmError, match="num_examples is -1"):
        Explanation(num_examples=-1)
    with pytest.raises(KalmError, match="num_answers is 0"):
        Explanation(num_answers=0)
