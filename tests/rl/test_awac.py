"""Advantage-weighted actor-critic: numbers worked by hand, what each loss trains, what bootstraps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kalm.core.errors import KalmError
from kalm.core.specs import Spec
from kalm.rl.awac import AWAC
from kalm.rl.training.batches import TransitionBatch
from tests.rl.constant_networks import SumCritics, make_constant
from tests.rl.helpers import CONTINUOUS, DISCRETE, transition_batch

SPECS = pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])


def known_batch(spec: Spec, terminated: bool = False) -> TransitionBatch:
    """One transition: action 0, or (1, 0, -1); reward 1."""
    action = torch.tensor([0]) if spec.is_discrete else torch.tensor([[1.0, 0.0, -1.0]])
    batch = transition_batch(spec, num_rows=1)
    return replace(batch, action=action, reward=torch.tensor([1.0]), terminated=torch.tensor([terminated]))


def known_policy(spec: Spec, **options: float) -> AWAC:
    """Critics give the recorded action 1 and 2, the target critics 1.5 and 2.5; the policy's mean is 0.

    The discrete policy does its actions with probabilities 1/2, 1/4, 1/4.
    """
    policy = AWAC(spec, discount=0.9, **options)
    if spec.is_discrete:
        make_constant(policy.critic, [[1.0, 3.0, 0.0], [2.0, 1.0, 0.0]])
        make_constant(policy.target_critic, [[1.5, 3.0, 0.0], [2.5, 1.0, 4.0]])
        make_constant(policy.policy, [math.log(2), 0.0, 0.0])
    else:
        make_constant(policy.critic, [[1.0], [2.0]])
        make_constant(policy.target_critic, [[1.5], [2.5]])
        make_constant(policy.policy, [0.0, 0.0, 0.0])
    return policy


def test_discrete_losses_of_known_networks() -> None:
    """The lower critic of each action, target first: (1.5, 1, 0), worth 0.75 + 0.25 = 1 to the policy.

    Target 1 + 0.9 x 1 = 1.9: (1 - 1.9)^2 + (2 - 1.9)^2 = 0.82. Now (1, 1, 0), worth 0.5 + 0.25 = 0.75: advantage
    1 - 0.75 = 0.25; e^0.25 = 1.284025, times -ln(1/2) = 0.693147, is 0.890019.
    """
    losses = known_policy(DISCRETE).losses(known_batch(DISCRETE))
    assert list(losses) == ["critic_loss", "policy_loss"]
    assert losses["critic_loss"].tolist() == pytest.approx([0.82], abs=1e-6)
    assert losses["policy_loss"].tolist() == pytest.approx([0.890019], abs=1e-5)


def test_continuous_losses_of_known_networks() -> None:
    """Target 1 + 0.9 x 1.5 = 2.35: (1 - 2.35)^2 + (2 - 2.35)^2 = 1.945. The policy's action is worth as much: e^0 = 1.

    Mean tanh(0) = 0, deviation 1/2, action (1, 0, -1): -log p = 0.5 x 2 x 4 + 1.5 ln(2 pi) - 3 ln 2 = 4.677374.
    """
    losses = known_policy(CONTINUOUS).losses(known_batch(CONTINUOUS))
    assert list(losses) == ["critic_loss", "policy_loss"]
    assert losses["critic_loss"].tolist() == pytest.approx([1.945], abs=1e-5)
    assert losses["policy_loss"].tolist() == pytest.approx([4.677374], abs=1e-5)


def test_a_continuous_action_is_compared_with_one_of_the_policys_own() -> None:
    """Critics are an action's sum s and 3 s. Half the noise (4, 1, -1), cut to (1, 0.5, -0.5): s = 1, the lower 1.

    The recorded action's s is 0: advantage -1, temperature 1/2, e^-2 = 0.135335, times 4.677374 is 0.633013. Next,
    half of (1, 0, -6), cut to (0.5, 0, -1): s = -0.5, the lower -1.5; target 1 - 1.35 = -0.35; 2 x 0.35^2 = 0.245.
    """
    policy, batch = known_policy(CONTINUOUS, temperature=0.5), known_batch(CONTINUOUS)
    policy.critic = policy.target_critic = SumCritics()
    batch.noise[0, :6] = torch.tensor([4.0, 1.0, -1.0, 1.0, 0.0, -6.0])
    losses = policy.losses(batch)
    assert losses["critic_loss"].tolist() == pytest.approx([0.245], abs=1e-5)
    assert losses["policy_loss"].tolist() == pytest.approx([0.633013], abs=1e-5)


def test_the_weight_of_a_transition_is_bounded() -> None:
    """Advantage 0.25, temperature 0.05: e^5 = 148.4 is cut to 100; 100 x 0.693147."""
    losses = known_policy(DISCRETE, temperature=0.05).losses(known_batch(DISCRETE))
    assert losses["policy_loss"].tolist() == pytest.approx([69.3147], abs=1e-3)


@SPECS
def test_terminated_step_does_not_bootstrap(spec: Spec) -> None:
    """Nothing follows an end: the target is the reward, 1: (1 - 1)^2 + (2 - 1)^2 = 1."""
    losses = known_policy(spec).losses(known_batch(spec, terminated=True))
    assert losses["critic_loss"].tolist() == pytest.approx([1.0], abs=1e-6)


@SPECS
@pytest.mark.parametrize(
    ("loss", "trained"), [("critic_loss", {"critic"}), ("policy_loss", {"policy", "log_deviation"})]
)
def test_each_loss_trains_its_own_networks(spec: Spec, loss: str, trained: set[str]) -> None:
    """Neither the advantage nor the bootstrapped value passes a gradient on."""
    policy = AWAC(spec)
    policy.losses(transition_batch(spec))[loss].sum().backward()
    moved = {name.split(".")[0] for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert moved == trained & {name for name, _ in policy.named_children()}


def test_the_bootstrapped_value_is_a_constant_to_the_gradient() -> None:
    """d/dq of (q - 1.9)^2 is 2 (1 - 1.9) = -1.8 and 2 (2 - 1.9) = 0.2 for the recorded action, 0 for others."""
    policy = known_policy(DISCRETE)
    policy.losses(known_batch(DISCRETE))["critic_loss"].sum().backward()
    gradient = policy.critic.biases[-1].grad
    assert gradient is not None
    torch.testing.assert_close(gradient.squeeze(1), torch.tensor([[-1.8, 0.0, 0.0], [0.2, 0.0, 0.0]]))


def test_the_deviation_keeps_to_its_bounds() -> None:
    """The authors': between e^-6 and 1; far beyond them it is as good as on them, and it begins at 1/2."""
    policy = AWAC(CONTINUOUS)
    assert policy.log_deviation().tolist() == pytest.approx([math.log(0.5)] * 3, abs=1e-6)
    with torch.no_grad():
        policy.log_deviation.values.copy_(torch.tensor([-30.0, -3.0, 30.0]))
    assert policy.log_deviation().tolist() == pytest.approx([-6.0, -3.0, 0.0], abs=0.01)


@pytest.mark.parametrize("values", [None, -30.0, 30.0], ids=["at first", "at its least", "at its greatest"])
def test_the_deviation_never_stops_learning(values: float | None) -> None:
    """A component that has come to a bound, or begins on it, must be able to leave it again."""
    policy = known_policy(CONTINUOUS)
    if values is not None:
        nn.init.constant_(policy.log_deviation.values, values)
    policy.losses(known_batch(CONTINUOUS))["policy_loss"].sum().backward()
    gradient = policy.log_deviation.values.grad
    assert gradient is not None
    assert (gradient != 0).all()
    assert gradient.isfinite().all()


def test_it_does_the_likeliest_action() -> None:
    """Output (1, 3, 2): action 1; continuous: its tanh."""
    batch = transition_batch(DISCRETE)
    discrete, continuous = AWAC(DISCRETE), AWAC(CONTINUOUS)
    make_constant(discrete.policy, [1.0, 3.0, 2.0])
    make_constant(continuous.policy, [0.0, 20.0, -20.0])
    assert discrete.act(batch.observation, batch.goal_embedding).tolist() == [1] * 6
    assert continuous.act(batch.observation, batch.goal_embedding)[0].tolist() == pytest.approx([0.0, 1.0, -1.0])


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"max_advantage_weight": 0.0}], ids=str)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    """The error names the option and its value."""
    name, value = next(iter(options.items()))
    with pytest.raises(KalmError, match=f"{name} is {value}"):
        AWAC(DISCRETE, **options)
