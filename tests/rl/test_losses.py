"""The losses against numbers worked by hand, the arithmetic in each docstring."""

from __future__ import annotations

from math import log

import pytest
import torch

from kalm.rl.losses import (
    advantage_weight,
    cql_penalty,
    expectile_loss,
    gaussian_log_probability,
    huber_td_loss,
    imitation_loss,
    log_probability_penalty,
    sampled_cql_penalty,
    soft_policy_loss,
    squared_action_error,
    standard_normal_divergence,
    td_target,
    temperature_loss,
)


def test_imitation_loss_is_the_negative_log_of_the_recorded_actions_probability() -> None:
    """Probabilities (1/4, 3/4): action 0 costs ln 4 = 1.386294, action 1 costs ln(4/3) = 0.287682."""
    log_probability = torch.log(torch.tensor([[0.25, 0.75], [0.25, 0.75]]))
    loss = imitation_loss(log_probability, torch.tensor([0, 1]))
    assert loss.tolist() == pytest.approx([1.386294, 0.287682], abs=1e-6)


def test_certainty_costs_more_than_doubt() -> None:
    """(1/2, 1/2): (ln 2)^2 = 0.480453. (1/4, 3/4): ((ln 4)^2 + (ln 4/3)^2) / 2 = (1.921812 + 0.082761) / 2."""
    log_probability = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    assert log_probability_penalty(log_probability).tolist() == pytest.approx([0.480453, 1.002287], abs=1e-6)


def test_squared_action_error_is_a_mean_over_components() -> None:
    """Differences (1, -2): (1 + 4) / 2 = 2.5; (0, 0): 0."""
    predicted = torch.tensor([[0.5, -1.0], [0.2, 0.3]])
    action = torch.tensor([[-0.5, 1.0], [0.2, 0.3]])
    assert squared_action_error(predicted, action).tolist() == [2.5, 0.0]


def test_target_bootstraps_unless_the_task_ended() -> None:
    """Reward 1, discount 0.9, next value 3: 1 + 2.7 = 3.7; where the task ended: 1."""
    target = td_target(torch.ones(2), 0.9, torch.full((2,), 3.0), torch.tensor([False, True]))
    assert target.tolist() == pytest.approx([3.7, 1.0])


def test_a_terminated_step_ignores_even_a_value_that_is_not_a_number() -> None:
    """Nothing follows a terminated step, so nothing that is computed there may leak: 0 x nan would."""
    target = td_target(torch.ones(1), 0.9, torch.tensor([float("nan")]), torch.tensor([True]))
    assert target.tolist() == [1.0]


def test_huber_loss_is_quadratic_near_and_linear_far() -> None:
    """Errors 0.5, 1, 3: 0.5 x 0.25 = 0.125; 0.5; 3 - 0.5 = 2.5."""
    loss = huber_td_loss(torch.zeros(3), torch.tensor([0.5, -1.0, 3.0]))
    assert loss.tolist() == [0.125, 0.5, 2.5]


def test_cql_penalty_of_two_equal_values_is_ln_two() -> None:
    """Q = (q, q): ln(e^q + e^q) - q = ln 2, whatever q is."""
    assert cql_penalty(torch.tensor([[7.0, 7.0]]), torch.tensor([1])).tolist() == pytest.approx([log(2)], abs=1e-6)


def test_cql_penalty_charges_the_unseen_action() -> None:
    """Q = (1, 3), recorded 0: 3 + ln(1 + e^-2) - 1 = 2.126928; recorded 1: ln(1 + e^-2) = 0.126928."""
    penalty = cql_penalty(torch.tensor([[1.0, 3.0], [1.0, 3.0]]), torch.tensor([0, 1]))
    assert penalty.tolist() == pytest.approx([2.126928, 0.126928], abs=1e-6)


@pytest.mark.parametrize(("q_shape", "action_shape"), [((4,), (4,)), ((4, 2), (4, 1)), ((4, 2), (3,))])
def test_cql_penalty_refuses_shapes_that_would_broadcast(q_shape: tuple[int, ...], action_shape: tuple[int]) -> None:
    """A wrong shape would otherwise give a wrong number rather than an error."""
    with pytest.raises(ValueError, match="needs q of shape"):
        cql_penalty(torch.zeros(q_shape), torch.zeros(action_shape, dtype=torch.int64))


def test_sampled_cql_penalty_weighs_each_sample_by_one_over_its_density() -> None:
    """Q = (1, 3) drawn with densities 1/2 and 1/4: ln(2 e + 4 e^3) - 1 = ln(5.436564 + 80.342148) - 1 = 3.451771.

    Another critic, Q = (0, 0): ln(2 + 4) - 2 = -0.208241; nothing keeps a sampled penalty above 0.
    """
    q, log_density = torch.tensor([[[1.0, 3.0]], [[0.0, 0.0]]]), torch.log(torch.tensor([[0.5, 0.25]]))
    penalty = sampled_cql_penalty(q, log_density, torch.tensor([[1.0], [2.0]]))
    assert penalty.shape == (2, 1)
    assert penalty.flatten().tolist() == pytest.approx([3.451771, -0.208241], abs=1e-5)


def test_soft_policy_loss_wants_value_and_entropy() -> None:
    """Temperature 1/2, log-densities -2 and 4, value 3: -1 - 3 = -4; 2 - 3 = -1: the likelier action costs more."""
    loss = soft_policy_loss(torch.full((2,), 3.0), torch.tensor([-2.0, 4.0]), torch.tensor([0.5]))
    assert loss.tolist() == [-4.0, -1.0]


def test_soft_policy_loss_does_not_train_the_temperature() -> None:
    """Else the policy's loss would make entropy cheap."""
    temperature = torch.ones(1, requires_grad=True)
    assert not soft_policy_loss(torch.ones(2), torch.ones(2), temperature).requires_grad


def test_the_temperature_rises_while_the_policy_is_too_sure() -> None:
    """Target entropy -3. Log-density 4 is an entropy of -4, too little: slope -(4 - 3) = -1; -2 is 2, too much: 5.

    At a temperature of 2 the losses are ln 2 times that.
    """
    log_temperature = torch.tensor([log(2)], requires_grad=True)
    loss = temperature_loss(log_temperature, torch.tensor([4.0, -2.0]), -3.0)
    assert loss.tolist() == pytest.approx([-0.693147, 3.465736], abs=1e-5)
    slopes = [torch.autograd.grad(one, [log_temperature], retain_graph=True)[0].item() for one in loss]
    assert slopes == pytest.approx([-1.0, 5.0])


def test_the_temperatures_loss_does_not_train_the_policy() -> None:
    """It reads how sure the policy is, and leaves it so."""
    log_probability = torch.ones(2, requires_grad=True)
    assert not temperature_loss(torch.zeros(1), log_probability, -3.0).requires_grad


def test_expectile_loss_charges_being_too_low_more() -> None:
    """Expectile 0.9: an error of 2 (too low) costs 0.9 x 4 = 3.6; of -2 (too high) 0.1 x 4 = 0.4."""
    assert expectile_loss(torch.tensor([2.0, -2.0, 0.0]), 0.9).tolist() == pytest.approx([3.6, 0.4, 0.0])


def test_the_advantage_weight_is_exponential_and_bounded() -> None:
    """Inverse temperature 2: e^0 = 1, e^-2 = 0.135335, e^(2 ln 3) = 9; e^20 is cut to 50."""
    weight = advantage_weight(torch.tensor([0.0, -1.0, log(3), 10.0]), 2.0, 50.0)
    assert weight.tolist() == pytest.approx([1.0, 0.135335, 9.0, 50.0], abs=1e-5)


def test_the_advantage_weight_passes_no_gradient_on() -> None:
    """Else the policy's loss would pull the value towards making bad actions look good."""
    assert not advantage_weight(torch.ones(1, requires_grad=True), 1.0, 10.0).requires_grad


def test_gaussian_log_probability_is_the_logarithm_of_the_density() -> None:
    """Mean 0, deviation 1 at 0 and 1: -0.918939 each, the second 0.5 less; deviation 2 at 2 away: ln 2 + 0.5 less.

    0.5 ln(2 pi) = 0.918939. First row: -0.918939 - 1.418939 = -2.337877; second: -0.918939 - 2.112086 = -3.031024.
    """
    log_deviation = torch.tensor([[0.0, 0.0], [0.0, log(2)]])
    values = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    probability = gaussian_log_probability(values, torch.zeros(2, 2), log_deviation)
    assert probability.tolist() == pytest.approx([-2.337877, -3.031024], abs=1e-5)


def test_divergence_from_the_standard_normal() -> None:
    """Itself: 0. Mean 1, deviation 1: 0.5 x 1. Mean 0, deviation 2: 0.5 x (4 - 1 - 2 ln 2) = 0.806853."""
    mean, log_deviation = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, log(2)]])
    divergence = standard_normal_divergence(mean, log_deviation)
    assert divergence.tolist() == pytest.approx([0.0, (0.5 + 0.806853) / 2], abs=1e-5)
