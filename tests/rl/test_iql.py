"""Implicit Q-learning: numbers worked by hand, what each loss trains, what bootstraps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kalm.core.errors import KalmError
from kalm.core.specs import Spec
from kalm.rl.iql import IQL
from kalm.rl.training.batches import TransitionBatch
from tests.rl.constant_networks import make_constant
from tests.rl.helpers import CONTINUOUS, DISCRETE, transition_batch

SPECS = pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])


def known_batch(spec: Spec, terminated: bool = False) -> TransitionBatch:
    """One transition: action 0, or (1, 0, -1); reward 1."""
    action = torch.tensor([0]) if spec.is_discrete else torch.tensor([[1.0, 0.0, -1.0]])
    batch = transition_batch(spec, num_rows=1)
    return replace(batch, action=action, reward=torch.tensor([1.0]), terminated=torch.tensor([terminated]))


def known_policy(spec: Spec, recorded_value: float = 1.5) -> IQL:
    """V is 0.5; the critics give the recorded action 1 and 2, the target critics ``recorded_value`` and one more."""
    policy = IQL(spec, discount=0.9)
    make_constant(policy.value, [0.5])
    q, target_q = [1.0, 2.0], [recorded_value, recorded_value + 1]
    others = [3.0, 0.0] if spec.is_discrete else []  # two actions that nobody recorded
    make_constant(policy.critic, [[value, *others] for value in q])
    make_constant(policy.target_critic, [[value, *others] for value in target_q])
    make_constant(policy.policy, [math.log(2), 0.0, 0.0] if spec.is_discrete else [0.0, 0.0, 0.0])
    return policy


@SPECS
def test_value_and_critic_losses_of_known_networks(spec: Spec) -> None:
    """The lower target critic counts: advantage 1.5 - 0.5 = 1; value loss 0.7 x 1.

    Target 1 + 0.9 x 0.5 = 1.45; critics (1 - 1.45)^2 + (2 - 1.45)^2 = 0.2025 + 0.3025 = 0.505.
    """
    losses = known_policy(spec).losses(known_batch(spec))
    assert list(losses) == ["value_loss", "critic_loss", "policy_loss"]
    assert losses["value_loss"].tolist() == pytest.approx([0.7], abs=1e-6)
    assert losses["critic_loss"].tolist() == pytest.approx([0.505], abs=1e-6)


@SPECS
def test_a_value_that_is_too_high_costs_less(spec: Spec) -> None:
    """Advantage -0.5 - 0.5 = -1: (1 - 0.7) x 1 = 0.3."""
    losses = known_policy(spec, recorded_value=-0.5).losses(known_batch(spec))
    assert losses["value_loss"].tolist() == pytest.approx([0.3], abs=1e-6)


def test_discrete_policy_loss_of_known_networks() -> None:
    """Weight e^(3 x 1) = 20.085537; probability of action 0 is 1/2: 20.085537 x 0.693147 = 13.922234."""
    losses = known_policy(DISCRETE).losses(known_batch(DISCRETE))
    assert losses["policy_loss"].tolist() == pytest.approx([13.922234], abs=1e-4)


def test_continuous_policy_loss_of_known_networks() -> None:
    """Mean tanh(0) = 0, deviation 1, action (1, 0, -1).

    -log p = 0.5 x 2 + 1.5 ln(2 pi) = 1 + 2.756816 = 3.756816; times 20.085537 = 75.457659.
    """
    losses = known_policy(CONTINUOUS).losses(known_batch(CONTINUOUS))
    assert losses["policy_loss"].tolist() == pytest.approx([75.457659], abs=1e-3)


def test_the_weight_of_a_transition_is_bounded() -> None:
    """Advantage 3 - 0.5 = 2.5: e^7.5 = 1808 is cut to 100; 100 x 0.693147."""
    losses = known_policy(DISCRETE, recorded_value=3.0).losses(known_batch(DISCRETE))
    assert losses["policy_loss"].tolist() == pytest.approx([69.3147], abs=1e-3)


@SPECS
def test_terminated_step_does_not_bootstrap(spec: Spec) -> None:
    """Nothing follows an end: the target is the reward, 1: (1 - 1)^2 + (2 - 1)^2 = 1."""
    losses = known_policy(spec).losses(known_batch(spec, terminated=True))
    assert losses["critic_loss"].tolist() == pytest.approx([1.0], abs=1e-6)


@SPECS
@pytest.mark.parametrize(
    ("loss", "trained"),
    [("value_loss", {"value"}), ("critic_loss", {"critic"}), ("policy_loss", {"policy", "log_deviation"})],
)
def test_each_loss_trains_its_own_network(spec: Spec, loss: str, trained: set[str]) -> None:
    """Neither the advantage nor the bootstrapped value passes a gradient on."""
    policy = IQL(spec)
    policy.losses(transition_batch(spec))[loss].sum().backward()
    moved = {name.split(".")[0] for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert moved == trained & {name for name, _ in policy.named_children()}


def test_the_bootstrapped_value_is_a_constant_to_the_gradient() -> None:
    """d/dq of (q - 1.45)^2 is 2 (1 - 1.45) = -0.9 and 2 (2 - 1.45) = 1.1 for the recorded action, 0 for others."""
    policy = known_policy(DISCRETE)
    policy.losses(known_batch(DISCRETE))["critic_loss"].sum().backward()
    gradient = policy.critic.biases[-1].grad
    assert gradient is not None
    torch.testing.assert_close(gradient.squeeze(1), torch.tensor([[-0.9, 0.0, 0.0], [1.1, 0.0, 0.0]]))


def test_it_does_the_likeliest_action() -> None:
    """Output (1, 3, 2): action 1; continuous: its tanh."""
    batch = transition_batch(DISCRETE)
    discrete, continuous = IQL(DISCRETE), IQL(CONTINUOUS)
    make_constant(discrete.policy, [1.0, 3.0, 2.0])
    make_constant(continuous.policy, [0.0, 20.0, -20.0])
    assert discrete.act(batch.observation, batch.goal_embedding).tolist() == [1] * 6
    assert continuous.act(batch.observation, batch.goal_embedding)[0].tolist() == pytest.approx([0.0, 1.0, -1.0])


@pytest.mark.parametrize("expectile", [0.5, 0.9])
def test_the_value_is_the_expectile_of_what_was_recorded(expectile: float) -> None:
    """Two actions, equally often, worth 0 and 1: the value v solves e (1 - v) = (1 - e) v, so v = e."""
    torch.manual_seed(0)
    policy = IQL(DISCRETE, expectile=expectile, hidden_sizes=[8])
    make_constant(policy.target_critic, [[0.0, 1.0, 7.0]] * 2)
    make_constant(policy.value, [0.3])
    batch = replace(transition_batch(DISCRETE, num_rows=2), action=torch.tensor([0, 1]))
    bias = policy.value.output.bias
    for _ in range(200):
        (gradient,) = torch.autograd.grad(policy.losses(batch)["value_loss"].mean(), [bias])
        with torch.no_grad():
            bias -= 0.5 * gradient
    assert bias.item() == pytest.approx(expectile, abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"expectile": 0.0}, {"expectile": 1.0}, {"inverse_temperature": -1.0}, {"max_advantage_weight": 0.0}],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    """The error names the option and its value."""
    name, value = next(iter(options.items()))
    with pytest.raises(KalmError, match=f"{name} is {value}"):
        IQL(DISCRETE, **options)
