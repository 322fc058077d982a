"""Conservative Q-learning: numbers worked by hand, what each loss trains, what bootstraps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from kalm.core.errors import KalmError
from kalm.core.specs import Spec
from kalm.rl.cql import CQL
from kalm.rl.training.batches import TransitionBatch, unstack
from tests.rl.constant_networks import SumCritics, make_constant
from tests.rl.helpers import CONTINUOUS, DISCRETE, stacked_batch, transition_batch


def known_batch(terminated: bool) -> TransitionBatch:
    """One transition: action 0, reward 1."""
    batch = transition_batch(DISCRETE, num_rows=1)
    return replace(batch, action=torch.tensor([0]), reward=torch.tensor([1.0]), terminated=torch.tensor([terminated]))


def test_losses_of_a_known_critic() -> None:
    """Q = (1, 3, 0) in both critics, action 0, reward 1, discount 0.9.

    Target 1 + 0.9 x 3 = 3.7; error 2.7; Huber 2.7 - 0.5 = 2.2. Penalty: ln(e + e^3 + 1) - 1 = 3.169846 - 1 = 2.169846;
    times 10.
    """
    policy = CQL(DISCRETE, discount=0.9)
    make_constant(policy.critic, [1.0, 3.0, 0.0])
    make_constant(policy.target_critic, [1.0, 3.0, 0.0])
    losses = policy.losses(known_batch(terminated=False))
    assert losses["td_loss"].tolist() == pytest.approx([2.2], abs=1e-5)
    assert losses["conservative_loss"].tolist() == pytest.approx([21.69846], abs=1e-4)


def test_the_critic_chooses_and_the_target_critic_judges() -> None:
    """Double DQN: the critic likes action 1, which the target critic values at 5, though action 2 is worth 9 there.

    Target 1 + 0.9 x 5 = 5.5; Q of action 0 is 1; error 4.5; Huber 4.
    """
    policy = CQL(DISCRETE, discount=0.9)
    make_constant(policy.critic, [1.0, 3.0, 0.0])
    make_constant(policy.target_critic, [0.0, 5.0, 9.0])
    assert policy.losses(known_batch(terminated=False))["td_loss"].tolist() == pytest.approx([4.0], abs=1e-5)


def test_without_the_penalty_it_is_double_dqn() -> None:
    """Weight 0: the temporal-difference error is as before, 2.2, and nothing else is minimised."""
    policy = CQL(DISCRETE, discount=0.9, conservative_weight=0.0)
    make_constant(policy.critic, [1.0, 3.0, 0.0])
    make_constant(policy.target_critic, [1.0, 3.0, 0.0])
    losses = policy.losses(known_batch(terminated=False))
    assert losses["td_loss"].tolist() == pytest.approx([2.2], abs=1e-5)
    assert losses["conservative_loss"].tolist() == [0.0]


def test_terminated_step_does_not_bootstrap() -> None:
    """The target is the reward, 1, which Q of action 0 equals: no error left."""
    policy = CQL(DISCRETE)
    make_constant(policy.critic, [1.0, 3.0, 0.0])
    make_constant(policy.target_critic, [1.0, 3.0, 0.0])
    assert policy.losses(known_batch(terminated=True))["td_loss"].tolist() == [0.0]


def test_truncated_step_still_bootstraps() -> None:
    """From stored transitions on: ``truncated`` changes no loss, ``terminated`` does."""
    policy, stacked = CQL(DISCRETE), stacked_batch(DISCRETE, num_updates=1)
    stacked["next", "terminated"].fill_(False)

    def td_loss(batch: TensorDict) -> list[float]:
        (transitions,) = unstack(batch, torch.zeros(1, 4), lambda observation: observation, torch.zeros(1, 6, 0))
        return policy.losses(transitions)["td_loss"].tolist()

    expected = td_loss(stacked)
    stacked["next", "truncated"].fill_(True)
    assert td_loss(stacked) == expected
    stacked["next", "terminated"].fill_(True)
    assert td_loss(stacked) != expected


def test_each_loss_reaches_the_critic_and_leaves_its_target_alone() -> None:
    """Also through the bootstrapped value no gradient flows: a terminated batch has the same gradient path."""
    for name in ("td_loss", "conservative_loss"):
        policy = CQL(DISCRETE)
        policy.losses(transition_batch(DISCRETE))[name].sum().backward()
        assert all(parameter.grad is not None for parameter in policy.critic.parameters())
        assert all(parameter.grad is None for parameter in policy.target_critic.parameters())


def test_the_bootstrapped_value_is_a_constant_to_the_gradient() -> None:
    """Semi-gradient: with Q = b_a everywhere, d/db of the Huber loss is -1 for the recorded action and 0 elsewhere.

    The error is 2.7 > 1, so the slope is -1; if the next value were differentiated, b_1 would get +0.9.
    """
    policy = CQL(DISCRETE, discount=0.9)
    make_constant(policy.critic, [1.0, 3.0, 0.0])
    make_constant(policy.target_critic, [1.0, 3.0, 0.0])
    policy.losses(known_batch(terminated=False))["td_loss"].sum().backward()
    gradient = policy.critic.output.bias.grad
    assert gradient is not None
    assert gradient.tolist() == [-1.0, 0.0, 0.0]


# --- continuous actions ----------------------------------------------------------------------------------------------


def known_continuous_batch(terminated: bool = False) -> TransitionBatch:
    """One transition: action (1, 0, -1), reward 1; no noise."""
    batch = transition_batch(CONTINUOUS, num_rows=1)
    return replace(
        batch,
        action=torch.tensor([[1.0, 0.0, -1.0]]),
        reward=torch.tensor([1.0]),
        terminated=torch.tensor([terminated]),
        noise=torch.zeros_like(batch.noise),
    )


def known_continuous_policy(**options: Any) -> CQL:
    """Critics say 1 and 2, their targets 1.5 and 3; mean 0 and deviation 1 before tanh; temperature and factor 2."""
    policy = CQL(CONTINUOUS, discount=0.9, num_sampled_actions=1, **options)
    make_constant(policy.critic, [[1.0], [2.0]])
    make_constant(policy.target_critic, [[1.5], [3.0]])
    make_constant(policy.policy, [0.0] * 6)
    for name, scale in policy.named_children():
        if name in ("temperature", "multiplier"):
            torch.nn.init.constant_(scale.logarithm, math.log(2))
    return policy


def test_continuous_losses_of_known_networks() -> None:
    """Target 1 + 0.9 x 1.5 = 2.35: (1 - 2.35)^2 + (2 - 2.35)^2 = 1.945.

    Without noise both policies' actions are 0, of log-density -1.5 ln(2 pi) = -2.756816; the even one's is -3 ln 2. The
    penalty of a critic that says q everywhere: ln(2 e^(q + 2.756816) + 8 e^q) - q = ln(2 x 15.749610 + 8) = 3.676281;
    5 times for both critics: 36.762810. Policy: 2 x -2.756816 - 1 = -6.513631. Temperature, whose target is -3:
    -ln 2 x (-2.756816 - 3) = 3.990320.
    """
    losses = known_continuous_policy().losses(known_continuous_batch())
    assert list(losses) == ["td_loss", "conservative_loss", "policy_loss", "temperature_loss"]
    assert losses["td_loss"].tolist() == pytest.approx([1.945], abs=1e-5)
    assert losses["conservative_loss"].tolist() == pytest.approx([36.762810], abs=1e-4)
    assert losses["policy_loss"].tolist() == pytest.approx([-6.513631], abs=1e-5)
    assert losses["temperature_loss"].tolist() == pytest.approx([3.990320], abs=1e-5)


def test_lagrange_losses_of_known_networks() -> None:
    """Each critic's weighted penalty is 5 x 3.676281 = 18.381405, that is 8.381405 above the threshold of 10.

    Times 2 for both: 33.525620. The factor's loss: minus 2 x 8.381405, the mean over critics.
    """
    losses = known_continuous_policy(lagrange_threshold=10.0).losses(known_continuous_batch())
    assert list(losses) == ["td_loss", "conservative_loss", "lagrange_loss", "policy_loss", "temperature_loss"]
    assert losses["conservative_loss"].tolist() == pytest.approx([33.525620], abs=1e-4)
    assert losses["lagrange_loss"].tolist() == pytest.approx([-16.762810], abs=1e-4)


@pytest.mark.parametrize(("threshold", "sign"), [(10.0, -1), (30.0, 1)], ids=["too large", "small enough"])
def test_the_factor_rises_while_the_penalty_is_above_its_threshold(threshold: float, sign: int) -> None:
    """The weighted penalty is 18.4: the loss falls with a greater factor at 10, with a smaller one at 30."""
    policy = known_continuous_policy(lagrange_threshold=threshold)
    policy.losses(known_continuous_batch())["lagrange_loss"].sum().backward()
    assert policy.multiplier.logarithm.grad.sign().item() == sign


def test_the_target_values_what_the_policy_would_do_next() -> None:
    """Noise 1 in the first component of the first action for the next observation: tanh(1) = 0.761594.

    Target critics are its sum and three times that: 1 + 0.9 x 0.761594 = 1.685435; (1 - 1.685435)^2 +
    (2 - 1.685435)^2 = 0.469821 + 0.098951 = 0.568772. Noise of other kinds changes nothing.
    """
    policy, batch = known_continuous_policy(), known_continuous_batch()
    policy.target_critic = SumCritics()
    batch.noise[0, :9] = torch.tensor([5.0, 5.0, 5.0, 1.0, 0.0, 0.0, 5.0, 5.0, 5.0])
    assert policy.losses(batch)["td_loss"].tolist() == pytest.approx([0.568772], abs=1e-5)


def test_the_policy_climbs_the_lower_critic_at_an_action_of_its_own() -> None:
    """Noise (1, 0, 0): action (0.761594, 0, 0), log-density -2.756816 - 0.5 - ln(1 - 0.761594^2) = -2.389254.

    Critics are its sum and three times that: 2 x -2.389254 - 0.761594 = -5.540102.
    """
    policy, batch = known_continuous_policy(), known_continuous_batch()
    policy.critic = SumCritics()
    batch.noise[0, 0] = 1.0
    assert policy.losses(batch)["policy_loss"].tolist() == pytest.approx([-5.540102], abs=1e-4)


def test_continuous_terminated_step_does_not_bootstrap() -> None:
    """Nothing follows an end: the target is the reward, 1: (1 - 1)^2 + (2 - 1)^2 = 1."""
    losses = known_continuous_policy().losses(known_continuous_batch(terminated=True))
    assert losses["td_loss"].tolist() == pytest.approx([1.0], abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "trained"),
    [
        ("td_loss", "critic"),
        ("conservative_loss", "critic"),
        ("lagrange_loss", "multiplier"),
        ("policy_loss", "policy"),
        ("temperature_loss", "temperature"),
    ],
)
def test_each_continuous_loss_trains_its_own_network(loss: str, trained: str) -> None:
    """The policy looks through the critic without training it; sampled actions pass no gradient on."""
    policy = CQL(CONTINUOUS, lagrange_threshold=10.0)
    policy.losses(transition_batch(CONTINUOUS))[loss].sum().backward()
    moved = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in policy.named_parameters() if name.startswith(f"{trained}.")}


def test_it_does_the_squashed_mean() -> None:
    """Output (0, 20, -20) and any deviation: the tanh of the mean."""
    policy, batch = CQL(CONTINUOUS), transition_batch(CONTINUOUS)
    make_constant(policy.policy, [0.0, 20.0, -20.0, 1.0, 1.0, 1.0])
    assert policy.act(batch.observation, batch.goal_embedding)[0].tolist() == pytest.approx([0.0, 1.0, -1.0])


def test_defaults_follow_the_kind_of_action() -> None:
    """Discrete: KALM's and d3rlpy's; continuous: the paper's, with a smaller step for policy and temperature."""
    found = [
        (one.conservative_weight, one.learning_rate, one.target_update_rate, one.target_update_interval)
        for one in (CQL(DISCRETE), CQL(CONTINUOUS))
    ]
    assert found == [(10.0, 6.25e-5, 1.0, 8000), (5.0, 3e-4, 0.005, 1)]
    rates = {group["name"]: group["lr"] for group in CQL(CONTINUOUS).configure_optimizers().param_groups}
    assert rates == {"critic": 3e-4, "policy": 1e-4, "temperature": 1e-4}


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize(
    "options", [{"conservative_weight": -1.0}, {"policy_learning_rate": 0.0}, {"num_sampled_actions": 0}], ids=str
)
def test_options_out_of_range_are_refused(spec: Spec, options: dict[str, Any]) -> None:
    """The error names the option and its value."""
    name, value = next(iter(options.items()))
    with pytest.raises(KalmError, match=f"{name} is {value}"):
        CQL(spec, **options)
