"""Conservative Q-learning: numbers worked by hand, what each loss trains, what bootstraps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from kalm.rl.cql import CQL
from kalm.rl.networks import MLP
from kalm.rl.transition_batch import TransitionBatch, unstack
from tests.rl.helpers import DISCRETE, stacked_batch, transition_batch


def make_constant(network: MLP, values: list[float]) -> None:
    """Give a critic values that no input changes."""
    nn.init.zeros_(network.output.weight)
    with torch.no_grad():
        network.output.bias.copy_(torch.tensor(values))


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


def test_terminated_step_does_not_bootstrap() -> None:
    """The target is the reward, 1, which Q of action 0 equals: no error left (N8)."""
    policy = CQL(DISCRETE)
    make_constant(policy.critic, [1.0, 3.0, 0.0])
    make_constant(policy.target_critic, [1.0, 3.0, 0.0])
    assert policy.losses(known_batch(terminated=True))["td_loss"].tolist() == [0.0]


def test_truncated_step_still_bootstraps() -> None:
    """N8 from the stored transitions on: ``truncated`` changes no loss, ``terminated`` does."""
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
