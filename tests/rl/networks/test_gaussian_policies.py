"""Squashed normal distributions and the actions that are drawn to be priced: numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from kalm.rl.networks.gaussian_policies import SquashedGaussian, sampled_actions, uniform_actions


def standard(num_components: int = 1) -> SquashedGaussian:
    """Mean 0, deviation 1 before tanh, one row."""
    return SquashedGaussian(torch.zeros(1, num_components), torch.zeros(1, num_components))


def test_a_sample_and_its_density() -> None:
    """Mean 0, deviation 1, noise 1: tanh(1) = 0.761594; -0.918939 - 0.5 - ln(1 - 0.761594^2) = -1.418939 + 0.867562.

    Mean 1, deviation e, noise -1: 1 - e = -1.718282, whose tanh is -0.937656; -1.418939 - 1 - ln(1 - 0.937656^2) =
    -2.418939 + 2.113609 = -0.305330.
    """
    action, log_density = standard().sample(torch.ones(1, 1))
    assert action.tolist() == [pytest.approx([0.761594], abs=1e-5)]
    assert log_density.tolist() == pytest.approx([-0.551377], abs=1e-5)
    action, log_density = SquashedGaussian(torch.ones(1, 1), torch.ones(1, 1)).sample(-torch.ones(1, 1))
    assert action.tolist() == [pytest.approx([-0.937656], abs=1e-5)]
    assert log_density.tolist() == pytest.approx([-0.305330], abs=1e-5)


def test_the_density_integrates_to_one() -> None:
    """Over [-1, 1], by rectangles in the value before tanh: the sum of p(a) da, with da = (1 - a^2) du."""
    values = torch.linspace(-9, 9, 2001, dtype=torch.float64).unsqueeze(-1)
    distribution = SquashedGaussian(torch.full((1, 1), 0.3), torch.full((1, 1), -0.2))
    noise = (values - 0.3) / torch.exp(torch.tensor(-0.2))
    action, log_density = distribution.sample(noise)
    total = (log_density.exp() * (1 - action.squeeze(-1).square())).sum() * (18 / 2000)
    assert total.item() == pytest.approx(1.0, abs=1e-4)


def test_components_are_independent() -> None:
    """The log-density of three equal components is three times that of one."""
    _, one = standard(1).sample(torch.ones(1, 1))
    _, three = standard(3).sample(torch.ones(1, 3))
    assert three.item() == pytest.approx(3 * one.item(), abs=1e-5)


def test_it_stays_finite_where_tanh_has_become_one() -> None:
    """At 50 before tanh, in single precision, gradients too."""
    mean = torch.full((1, 1), 50.0, requires_grad=True)
    action, log_density = SquashedGaussian(mean, torch.zeros(1, 1)).sample(torch.zeros(1, 1))
    assert action.item() == 1.0
    assert log_density.isfinite().all()
    (gradient,) = torch.autograd.grad(log_density.sum(), [mean])
    assert gradient.item() == pytest.approx(2.0)


def test_a_networks_output_is_mean_and_bounded_logarithm() -> None:
    """The first half is the mean; of the second, 5 is cut to 2 and -30 to -20."""
    distribution = SquashedGaussian.from_output(torch.tensor([[0.5, 7.0, -1.0, 5.0, -30.0, 1.0]]))
    assert distribution.mean.tolist() == [[0.5, 7.0, -1.0]]
    assert distribution.log_deviation.tolist() == [[2.0, -20.0, 1.0]]
    assert distribution.mode[0].tolist() == pytest.approx([0.462117, 0.999998, -0.761594], abs=1e-5)


def test_uniform_actions_are_spread_evenly() -> None:
    """Twice the normal distribution function less 1: 0 to 0, one deviation to 0.682689, two to 0.954500."""
    action = uniform_actions(torch.tensor([0.0, 1.0, -2.0]))
    assert action.tolist() == pytest.approx([0.0, 0.682689, -0.954500], abs=1e-5)


def test_sampled_actions_come_in_order_with_their_densities() -> None:
    """Two of a distribution, two of a surer one, two even ones; D + 1 = 3 kinds, M = 2, A = 1.

    Density of 0 under deviation 1: -0.918939; under deviation e^-1: -0.918939 + 1; evenly: -ln 2.
    """
    sure = SquashedGaussian(torch.zeros(1, 1), -torch.ones(1, 1))
    noise = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]).view(1, 3, 2, 1)
    action, log_density = sampled_actions([standard(), sure], noise)
    expected = [0.0, 0.761594, 0.0, 0.352136, 0.0, 0.682689]  # tanh(1), tanh(e^-1), erf(1 / sqrt 2)
    assert action.squeeze(-1)[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert log_density[0, [0, 2, 4, 5]].tolist() == pytest.approx([-0.918939, 0.081061, -0.693147, -0.693147], abs=1e-5)
