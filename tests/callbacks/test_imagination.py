"""Rates of imagined rollouts and the table of examples."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kalm.callbacks.imagination import Imagination
from kalm.core.errors import KalmError
from kalm.core.names import Source
from tests.callbacks.judged import logged_text, validate, walk

MEETS = walk([2, 3, 4], [1, 1], goal=4)
MISSES = walk([2, 1, 0], [0, 0], goal=4)
JUMPS = walk([2, 4], [1], goal=4)  # meets its goal, but no action leads two cells far
EASY = walk([2, 3], [1], goal=3, split="easy")


def test_rates_count_over_all_batches_of_a_split(tmp_path: Path) -> None:
    """Train: 2 of 3 meet their goal, 2 of 3 are plausible, 2 + 2 + 1 steps; easy: 1 of 1. Real ones do not count."""
    real = walk([2, 1], [0], goal=4, source=Source.REAL)
    metrics = validate(tmp_path, Imagination(), {"imaginary": [MEETS, EASY]}, {"real": [real]}, {"imaginary": [MISSES]},
                       {"imaginary": [JUMPS]})  # fmt: skip
    assert metrics == {
        "imagine/train/success_rate": pytest.approx(2 / 3),
        "imagine/train/plausible_rate": pytest.approx(2 / 3),
        "imagine/train/mean_length": pytest.approx(5 / 3),
        "imagine/easy/success_rate": 1.0,
        "imagine/easy/plausible_rate": 1.0,
        "imagine/easy/mean_length": 1.0,
    }


def test_every_validation_counts_anew(tmp_path: Path) -> None:
    """The same callback, first on a failure, then on a success."""
    callback = Imagination()
    assert validate(tmp_path, callback, {"imaginary": [MISSES]})["imagine/train/success_rate"] == 0
    assert validate(tmp_path, callback, {"imaginary": [MEETS]})["imagine/train/success_rate"] == 1


def test_nothing_imagined_logs_nothing(tmp_path: Path) -> None:
    """A validation on real rollouts only."""
    assert validate(tmp_path, Imagination(), {"real": [walk([2, 3], [1], goal=3, source=Source.REAL)]}) == {}


def test_table_shows_the_first_rollouts_of_each_split_and_their_verdicts(tmp_path: Path) -> None:
    """Two of three train rollouts and the easy one, in the order of the splits."""
    validate(tmp_path, Imagination(num_examples=2), {"imaginary": [EASY, JUMPS, MISSES, MEETS]})
    header, rule, *rows = (line.split(" | ") for line in logged_text(tmp_path, "imagine/examples").split("\n"))
    assert [len(row) for row in (rule, *rows)] == [len(header)] * 4
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    shown = [(cell["split"], cell["steps"], cell["meets its goal"], cell["plausible"]) for cell in cells]
    assert shown == [("train", "1", "yes", "no"), ("train", "2", "no", "yes"), ("easy", "1", "yes", "yes")]
    assert cells[0]["instruction"] == "go to the right end"


def test_a_sentence_is_shown_and_never_becomes_markup(tmp_path: Path) -> None:
    """HTML, Markdown, a column separator, a line break and template text, all in one instruction."""
    sentence = "<script>alert(1)</script> [x](javascript:1) **b** | {goal} {{7*7}}\nnext"
    validate(tmp_path, Imagination(), {"imaginary": [walk([2, 3], [1], goal=3, instruction=sentence)]})
    text = logged_text(tmp_path, "imagine/examples")
    assert len(text.split("\n")) == 3
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    for harmful in ("[x](", "**b**", " | {goal}"):
        assert harmful not in text
    assert "7\\*7" in text


def test_zero_examples_write_no_table(tmp_path: Path) -> None:
    """The rates are logged all the same."""
    assert validate(tmp_path, Imagination(num_examples=0), {"imaginary": [MEETS]})
    assert not EventAccumulator(str(tmp_path)).Reload().Tags()["tensors"]


def test_negative_examples_are_refused() -> None:
    """The message names the option."""
    with pytest.raises(KalmError, match="num_examples is -1"):
        Imagination(num_examples=-1)
