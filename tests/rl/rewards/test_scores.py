"""Thresholds and the figures of table B.4, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from kalm.report.paper import PROXY_SCORES
from kalm.rl.rewards.scores import choose_threshold, scores

PROBABILITY = np.array([0.9, 0.8, 0.6, 0.3, 0.1])
MET = np.array([True, True, False, True, False])


def test_a_threshold_keeps_the_precision() -> None:
    """Down to 0.8 all two are met; down to 0.3 three of four: 75 %. Lines are drawn half-way to the next state."""
    assert choose_threshold(PROBABILITY, MET, 0.95) == pytest.approx(0.7)
    assert choose_threshold(PROBABILITY, MET, 0.75) == pytest.approx(0.2)


def test_where_labels_can_be_told_apart_no_mistake_is_let_through() -> None:
    """At half the precision four states could be called met; only the two are that are."""
    met = np.array([True, True, False, False, False])
    assert choose_threshold(PROBABILITY, met, 0.5) == pytest.approx(0.7)


def test_no_line_divides_equals_and_none_is_drawn_below_the_precision() -> None:
    """Two states of 0.5, one of them met: half of what would be called met is."""
    assert choose_threshold(np.array([0.5, 0.5, 0.1]), np.array([True, False, False]), 0.95) > 1
    assert choose_threshold(np.array([0.5, 0.5, 0.1]), np.array([True, False, False]), 0.5) == pytest.approx(0.3)
    assert choose_threshold(PROBABILITY, np.zeros(5, np.bool_), 0.95) > 1


def test_scores_by_hand() -> None:
    """Two of three are called met, and nothing else: five of six pairs of met and unmet are in order."""
    found = scores(PROBABILITY, PROBABILITY >= 0.7, MET)
    assert found == {
        "num_states": 5,
        "num_met": 3,
        "auc": pytest.approx(5 / 6),
        "accuracy": pytest.approx(80),
        "precision": pytest.approx(100),
        "recall": pytest.approx(200 / 3),
    }
    assert scores(np.full(4, 0.5), np.zeros(4, bool), np.array([1, 0, 0, 1], bool))["auc"] == 0.5  # equals count half
    nothing = scores(PROBABILITY, np.zeros(5, bool), np.zeros(5, bool))
    assert (nothing["auc"], nothing["precision"], nothing["recall"]) == (None, None, None)


def test_the_papers_figures_stand_by_kind() -> None:
    """Five kinds, six goals."""
    assert sum(map(len, PROXY_SCORES.values())) == 6
    assert PROXY_SCORES["put_next"][0]["recall"] == 25
