"""Losses of grounding: numbers to check by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from kalm.llm.grounding.losses import Optimization, action_loss, change_loss, end_loss, text_loss


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
    loss = change_loss(torch.tensor([[3.0, 1.0], [1.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    assert loss.tolist() == pytest.approx([2.0, 1.0])


def test_end_loss_punishes_confidence_in_the_wrong_answer() -> None:
    """Score ln 3 is probability 3/4: loss ln(4/3) if it ends, ln 4 if not."""
    loss = end_loss(torch.full((2,), math.log(3)), torch.tensor([True, False]))
    assert loss.tolist() == pytest.approx([math.log(4 / 3), math.log(4)])


def test_text_loss_is_the_surprise_of_each_token() -> None:
    """Three equal scores: ln 3 each."""
    assert text_loss(torch.zeros(2, 3), torch.tensor([0, 2])).tolist() == pytest.approx([math.log(3)] * 2)


def test_optimiser_by_hand() -> None:
    """Peak rates 0.02 x 0.5 for the backbone and 0.02 for the rest; decay on matrices only, none of what is frozen."""
    backbone, codec = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3)), nn.Linear(3, 1)
    backbone[0].requires_grad_(False)
    parts = Optimization(0.02, 0.1, warmup_updates=2, schedule_updates=6, backbone_learning_rate_scale=0.5)
    configured: Any = parts.of(backbone, codec)
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    groups = [
        (0.01, 0.1, [backbone[1].weight]),
        (0.02, 0.1, [codec.weight]),
        (0.01, 0.0, [backbone[1].bias]),
        (0.02, 0.0, [codec.bias]),
    ]
    for group, (rate, decay, parameters) in zip(optimizer.param_groups, groups, strict=True):
        assert (group["initial_lr"], group["weight_decay"], group["betas"]) == (rate, decay, (0.9, 0.98))
        assert [id(one) for one in group["params"]] == [id(one) for one in parameters]
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[1]["lr"] / 0.02)
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0])


def test_without_warm_up_the_first_update_has_the_peak_rate() -> None:
    """And the last one a sixth of it."""
    parts = Optimization(1.0, 0.0, warmup_updates=0, schedule_updates=6, backbone_learning_rate_scale=1.0)
    assert [parts._rate(update) for update in range(6)] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
