"""Losses of grounding: numbers to check by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kalm.llm.grounding.losses import action_loss, change_loss, end_loss, text_loss


def test_action_loss_of_two_equal_scores_is_ln_2() -> None:
    """Scores (0, 0): probability 1/2, loss ln 2. Scores (0, ln 3), action 0: probability 1/4, loss ln 4."""
    loss = action_loss(torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.tensor([1, 0]))
    assert loss.tolist() == pytest.approx([math.log(2), math.log(4)])


def test_action_loss_of_vectors_is_the_mean_square() -> None:
    """Errors (1, 0) and (0.5, -0.5): means of squares 0.5 and 0.25."""
    loss = action_loss(torch.tensor([[1.0, 0.0], [0.5, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.5]]))
    assert loss.tolist() == pytest.approx([0.5, 0.25])


def test_change_loss_is_the_mean_square_of_each_observation() -> None:
    """Errors (2, 0) and (1, 1): 2 and 1."""
    loss = change_loss(torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.zeros(2, 2))
    assert loss.tolist() == pytest.approx([2.0, 1.0])


def test_end_loss_punishes_confidence_in_the_wrong_answer() -> None:
    """Score ln 3 is probability 3/4: loss ln(4/3) if it ends, ln 4 if not."""
    loss = end_loss(torch.full((2,), math.log(3)), torch.tensor([True, False]))
    assert loss.tolist() == pytest.approx([math.log(4 / 3), math.log(4)])


def test_text_loss_is_the_surprise_of_each_token() -> None:
    """Three equal scores: ln 3 each."""
    assert text_loss(torch.zeros(2, 3), torch.tensor([0, 2])).tolist() == pytest.approx([math.log(3)] * 2)
