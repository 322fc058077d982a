"""TD3+BC: numbers worked by hand, what each loss trains, when the policy learns, what bootstraps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kalm.core.errors import KalmError
from kalm.rl.td3_bc import TD3BC
from kalm.rl.training.batches import TransitionBatch
from tests.rl.constant_networks import SumCritics, make_constant
from tests.rl.helpers import CONTINUOUS, DISCRETE, transition_batch


def known_batch(terminated: bool = False) -> TransitionBatch:
    """One transition: action (1, 0, -1), reward 1."""
    batch = transition_batch(CONTINUOUS, num_rows=1)
    action, reward = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([1.0])
    return replace(batch, action=action, reward=reward, terminated=torch.tensor([terminated]))


def known_policy(first_value: float = 1.0) -> TD3BC:
    """It does nothing; critics say ``first_value`` and 2, their targets 1.5 and 3."""
    policy = TD3BC(CONTINUOUS, discount=0.9)
    make_constant(policy.policy, [0.0, 0.0, 0.0])
    make_constant(policy.critic, [[first_value], [2.0]])
    make_constant(policy.target_critic, [[1.5], [3.0]])
    return policy


def test_losses_of_known_networks() -> None:
    """Target 1 + 0.9 x 1.5 = 2.35: (1 - 2.35)^2 + (2 - 2.35)^2 = 1.8225 + 0.1225 = 1.945.

    The policy's value is the first critic's, 1, its scale 2.5 / 1: -2.5. Imitation of (1, 0, -1) by 0: (1 + 0 + 1) / 3.
    """
    losses = known_policy().losses(known_batch())
    assert list(losses) == ["critic_loss", "policy_loss", "imitation_loss"]
    assert losses["critic_loss"].tolist() == pytest.approx([1.945], abs=1e-6)
    assert losses["policy_loss"].tolist() == pytest.approx([-2.5], abs=1e-6)
    assert losses["imitation_loss"].tolist() == pytest.approx([2 / 3], abs=1e-6)


def test_terminated_step_does_not_bootstrap() -> None:
    """Nothing follows an end: the target is the reward, 1: (1 - 1)^2 + (2 - 1)^2 = 1."""
    losses = known_policy().losses(known_batch(terminated=True))
    assert losses["critic_loss"].tolist() == pytest.approx([1.0], abs=1e-6)


def test_the_target_blurs_the_action_of_the_target_policy() -> None:
    """Noise (10, -10, 1) x 0.2 = (2, -2, 0.2), cut to (0.5, -0.5, 0.2), on (0.9, 0.9, 0.9), cut to (1, 0.4, 1).

    The lower of its sum, 2.4, and three times that: 1 + 0.9 x 2.4 = 3.16; 2.16^2 + 1.16^2 = 4.6656 + 1.3456 = 6.0112.
    """
    policy, batch = known_policy(), known_batch()
    make_constant(policy.target_policy, [math.atanh(0.9)] * 3)
    policy.target_critic = SumCritics()
    batch.noise[:, :3] = torch.tensor([10.0, -10.0, 1.0])
    assert policy.losses(batch)["critic_loss"].tolist() == pytest.approx([6.0112], abs=1e-4)


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_values_of_any_size_weigh_as_much_against_imitation(size: float) -> None:
    """A negative value of any size costs alpha; in a minibatch that is the mean size of what the values cost."""
    assert known_policy(-size).losses(known_batch())["policy_loss"].tolist() == pytest.approx([2.5], abs=1e-6)
    policy = TD3BC(CONTINUOUS, value_weight=0.5)
    loss = policy.losses(transition_batch(CONTINUOUS))["policy_loss"]
    assert loss.abs().mean().item() == pytest.approx(0.5, abs=1e-6)
    assert loss.std() > 0


def test_the_scale_is_a_constant_to_the_gradient() -> None:
    """Of one transition the loss is alpha in size, whatever the value; if the scale were differentiated, none was left.

    Gradients: those of minus the value, times alpha over the value's size.
    """
    torch.manual_seed(0)
    policy, batch = TD3BC(CONTINUOUS), transition_batch(CONTINUOUS, num_rows=1)
    value = policy.critic(batch.observation, batch.goal_embedding, policy.act(batch.observation, batch.goal_embedding))
    parameters = list(policy.policy.parameters())
    of_value = torch.autograd.grad(value[0].sum(), parameters)
    of_loss = torch.autograd.grad(policy.losses(batch)["policy_loss"].sum(), parameters)
    for one, other in zip(of_loss, of_value, strict=True):
        torch.testing.assert_close(one, -2.5 / value[0].abs().item() * other)
    assert of_loss[-1].abs().sum() > 0


@pytest.mark.parametrize(
    ("loss", "trained"), [("critic_loss", "critic"), ("policy_loss", "policy"), ("imitation_loss", "policy")]
)
def test_each_loss_trains_its_own_network(loss: str, trained: str) -> None:
    """The policy looks through the critic without training it, and no target takes a gradient."""
    policy = TD3BC(CONTINUOUS)
    policy.losses(transition_batch(CONTINUOUS))[loss].sum().backward()
    moved = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    own = {name for name, _ in policy.named_parameters() if name.startswith(f"{trained}.")}
    assert moved == (own if loss != "critic_loss" else {name for name in own if "target" not in name})


def test_the_policy_learns_at_every_second_update_only() -> None:
    """Updates 0, 1, 2, 3: only 1 and 3 have the policy's losses."""
    policy, batch = TD3BC(CONTINUOUS), transition_batch(CONTINUOUS)
    names = []
    for number in range(4):
        policy.begin_update(number)
        names.append(list(policy.losses(batch)))
    assert names == [["critic_loss"], ["critic_loss", "policy_loss", "imitation_loss"]] * 2


def test_it_does_what_the_policy_says() -> None:
    """Output (0, 20, -20): its tanh."""
    policy, batch = TD3BC(CONTINUOUS), transition_batch(CONTINUOUS)
    make_constant(policy.policy, [0.0, 20.0, -20.0])
    assert policy.act(batch.observation, batch.goal_embedding)[0].tolist() == pytest.approx([0.0, 1.0, -1.0])


@pytest.mark.parametrize(
    "options",
    [{"value_weight": -1.0}, {"target_noise": -0.1}, {"max_target_noise": -0.1}, {"policy_update_interval": 0}],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    """The error names the option and its value."""
    name, value = next(iter(options.items()))
    with pytest.raises(KalmError, match=f"{name} is {value}"):
        TD3BC(CONTINUOUS, **options)


def test_discrete_actions_are_refused() -> None:
    """The error says what to use."""
    with pytest.raises(KalmError, match=r"continuous actions.*AWAC"):
        TD3BC(DISCRETE)
