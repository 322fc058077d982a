"""Conservative Q-learning: numbers worked by hand, what bootstraps, and a world with a closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from kalm.errors import KalmError
from kalm.rl.cql import CQL
from kalm.rl.networks import MLP
from kalm.rl.transition_batch import TransitionBatch, unstack
from kalm.types import TaskSpec
from tests.rl.helpers import CONTINUOUS, DISCRETE, FixedData, stacked_batch, trainer, transition_batch


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


def two_state_transitions() -> TensorDict:
    """All four transitions of a world with states A, B and actions stay, move; two copies, stacked for K = 20.

    Staying in B earns 2, moving from A to B earns 1, the rest 0; nothing ever ends.
    """
    state, next_state = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 0])
    columns = {
        "observation": torch.eye(2)[state],
        "action": torch.tensor([0, 1, 0, 1]),
        "next": {
            "observation": torch.eye(2)[next_state],
            "reward": torch.tensor([0.0, 1.0, 2.0, 0.0]),
            "terminated": torch.zeros(4, dtype=torch.bool),
            "truncated": torch.ones(4, dtype=torch.bool),
        },
        "instruction_id": torch.zeros(4, dtype=torch.int32),
        "rollout_id": torch.arange(4),
        "step": torch.zeros(4, dtype=torch.int16),
        "source": torch.zeros(4, dtype=torch.uint8),
    }
    return TensorDict(columns, batch_size=[4]).expand(20, 4)


def test_values_of_a_two_state_world_equal_the_closed_form(tmp_path: Path) -> None:
    """N7, discount 1/2, no conservatism.

    V(B) = 2 + V(B)/2 = 4; V(A) = max(V(A)/2, 1 + V(B)/2) = 3. So Q(A, stay) = 3/2, Q(A, move) = 1 + 2 = 3,
    Q(B, stay) = 2 + 2 = 4, Q(B, move) = 3/2.
    """
    torch.manual_seed(0)
    spec = TaskSpec(observation_size=2, action_size=2, is_discrete=True, goal_embedding_size=1)
    policy = CQL(
        spec, conservative_weight=0.0, discount=0.5, hidden_sizes=[32], learning_rate=1e-2, target_update_interval=50
    )
    data = FixedData(spec, two_state_transitions())
    trainer(tmp_path, max_steps=1000).fit(policy, data)
    policy.learning_rate = 1e-4  # Adam at a constant step size circles the solution
    trainer(tmp_path, max_steps=1000).fit(policy, data)
    q = policy.critic(torch.eye(2), policy.goal_embeddings.expand(2, 1))
    torch.testing.assert_close(q, torch.tensor([[1.5, 3.0], [4.0, 1.5]]), atol=1e-4, rtol=0)


def test_continuous_actions_are_refused() -> None:
    """This CQL reads a value for every action."""
    with pytest.raises(KalmError, match="discrete actions"):
        CQL(CONTINUOUS)
