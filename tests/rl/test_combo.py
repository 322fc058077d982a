"""COMBO: numbers worked by hand, what each loss trains, what is imagined, when the policy begins to learn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kalm.core.errors import KalmError
from kalm.rl.combo import COMBO
from kalm.rl.networks.gaussian_policies import SquashedGaussian
from kalm.rl.training.batches import TransitionBatch
from tests.rl.constant_networks import SumCritics, make_constant
from tests.rl.helpers import CONTINUOUS, DISCRETE, transition_batch

SMALL: dict[str, Any] = {"num_model_steps": 1, "num_sampled_actions": 1, "num_dynamics_members": 2}
# What a member of the model says: change of five numbers, reward; the logarithms of their deviations; logit of the end.
MEMBERS = [[0.0] * 5 + [reward] + [0.0] * 6 + [math.log(3)] for reward in (0.5, 0.0)]


def known_batch(terminated: bool = False) -> TransitionBatch:
    """One transition that changes nothing: action (1, 0, -1), reward 1; no noise."""
    batch = transition_batch(CONTINUOUS, num_rows=1)
    return replace(
        batch,
        action=torch.tensor([[1.0, 0.0, -1.0]]),
        reward=torch.tensor([1.0]),
        next_observation=batch.observation,
        terminated=torch.tensor([terminated]),
        noise=torch.zeros_like(batch.noise),
    )


def known_policy(**options: Any) -> COMBO:
    """Critics say 1 and 2, their targets 1.5 and 3; mean 0 and deviation 1 before tanh; temperature 2.

    The model changes nothing, with deviation 1; its members expect rewards 0.5 and 0, and an end three times in four.
    """
    policy = COMBO(CONTINUOUS, discount=0.9, **{**SMALL, **options})
    make_constant(policy.dynamics.members, MEMBERS)
    make_constant(policy.critic, [[1.0], [2.0]])
    make_constant(policy.target_critic, [[1.5], [3.0]])
    make_constant(policy.policy, [0.0] * 6)
    torch.nn.init.constant_(policy.temperature.logarithm, math.log(2))
    return policy


@pytest.mark.parametrize(("terminated", "expected"), [(False, 1.386294), (True, 0.287682)])
def test_losses_of_a_known_model(terminated: bool, expected: float) -> None:
    """Six outcomes of deviation 1: 6 x 0.918939 = 5.513631. Rewards miss by 0.5 and 1: the mean of 0.125 and 0.5 more.

    5.513631 + 0.3125 = 5.826131; the bounds of the deviation cost 3e-4. The end: -ln(1/4) = 1.386294 if it did not
    come, -ln(3/4) = 0.287682 if it did.
    """
    losses = known_policy().losses(known_batch(terminated))
    assert list(losses)[:2] == ["outcome_loss", "termination_loss"]
    assert losses["outcome_loss"].tolist() == pytest.approx([5.826131], abs=1e-3)
    assert losses["termination_loss"].tolist() == pytest.approx([expected], abs=1e-5)


def test_policy_losses_of_known_networks() -> None:
    """Recorded: target 1 + 0.9 x 1.5 = 2.35: (1 - 2.35)^2 + (2 - 2.35)^2 = 1.945.

    Imagined, by the first member: 0.5 + 0.9 x 1/4 x 1.5 = 0.8375; 0.1625^2 + 1.1625^2 = 0.026406 + 1.351406 = 1.377812.
    Half of each: 1.661406.

    Without noise the policy's actions are 0, of log-density -1.5 ln(2 pi) = -2.756816, the even one's is -3 ln 2: a
    critic's penalty is ln(2 x e^2.756816 + 8) = ln(2 x 15.749610 + 8) = 3.676281, both 7.352562. Policy, alike on
    recorded and imagined rows: 2 x -2.756816 - 1 = -6.513631. Temperature: -ln 2 x (-2.756816 - 3) = 3.990320.
    """
    losses = known_policy().losses(known_batch())
    assert list(losses)[2:] == ["critic_loss", "conservative_loss", "policy_loss", "temperature_loss"]
    assert losses["critic_loss"].tolist() == pytest.approx([1.661406], abs=1e-4)
    assert losses["conservative_loss"].tolist() == pytest.approx([7.352562], abs=1e-4)
    assert losses["policy_loss"].tolist() == pytest.approx([-6.513631], abs=1e-4)
    assert losses["temperature_loss"].tolist() == pytest.approx([3.990320], abs=1e-4)


@pytest.mark.parametrize(("real_fraction", "expected"), [(1.0, 1.945), (0.0, 1.377812), (0.25, 1.519609)])
def test_recorded_and_imagined_transitions_are_mixed(real_fraction: float, expected: float) -> None:
    """1.945 and 1.377812, as above; 0.25 x 1.945 + 0.75 x 1.377812 = 0.48625 + 1.033359."""
    losses = known_policy(real_fraction=real_fraction).losses(known_batch())
    assert losses["critic_loss"].tolist() == pytest.approx([expected], abs=1e-4)


def test_what_is_imagined_beyond_a_likely_end_counts_less() -> None:
    """Of two steps the second is drawn (noise 9): the first ended the task three times in four, so it counts 1/4.

    Critic: 0.5 x 1.945 + 0.5 x 0.25 x 1.377812 = 1.144727. Policy: (0.5 + 0.125) x -6.513631 = -4.071019.
    """
    batch = known_batch()
    batch.noise[0, 0] = 9.0
    losses = known_policy(num_model_steps=2).losses(batch)
    assert losses["critic_loss"].tolist() == pytest.approx([1.144727], abs=1e-4)
    assert losses["policy_loss"].tolist() == pytest.approx([-4.071019], abs=1e-4)


def test_terminated_step_does_not_bootstrap() -> None:
    """Recorded transitions alone: the target is the reward, 1: (1 - 1)^2 + (2 - 1)^2 = 1."""
    losses = known_policy(real_fraction=1.0).losses(known_batch(terminated=True))
    assert losses["critic_loss"].tolist() == pytest.approx([1.0], abs=1e-6)


def test_the_policy_climbs_the_lower_critic_at_recorded_and_imagined_observations() -> None:
    """Critics are an action's sum s and 3 s. Behind the rollout's 10 numbers: 3 for recorded, then 3 for imagined ones.

    Noise (1, 0, 0): tanh(1) = 0.761594, log-density -2.389254: 2 x -2.389254 - 0.761594 = -5.540102. Next, imagined:
    (-1, 0, 0): as likely, s = -0.761594, the lower -2.284782: -4.778508 + 2.284782 = -2.493726. Their mean: -4.016914.
    """
    policy, batch = known_policy(), known_batch()
    policy.critic = SumCritics()
    batch.noise[0, 10], batch.noise[0, 13] = 1.0, -1.0
    assert policy.losses(batch)["policy_loss"].tolist() == pytest.approx([-4.016914], abs=1e-4)


class ObservationCritics(nn.Module):
    """Two critics: the first number of the observation, and twice that."""

    def __init__(self, first: Tensor | None = None) -> None:
        """Remember the first numbers of observations that were given ahead, shape (B, 1)."""
        super().__init__()
        self.first = first

    def given(self, observation: Tensor, goal_embedding: Tensor) -> ObservationCritics:
        """The critics at observations."""
        return ObservationCritics(observation[:, :1])

    def __getitem__(self, rows: slice) -> ObservationCritics:
        """The critics at some of them."""
        assert self.first is not None
        return ObservationCritics(self.first[rows])

    def forward(self, action: Tensor, frozen: bool = False) -> Tensor:
        """Values of actions, (B, A), or of several for each observation, (B, M, A): (2, ..., 1)."""
        assert self.first is not None
        first = self.first.view(-1, *[1] * (action.ndim - 1)).expand(*action.shape[:-1], 1)
        return torch.stack([first, 2 * first])


def test_the_penalty_lowers_values_where_it_imagines_and_raises_them_where_it_recorded() -> None:
    """Critics are the first number of the observation, x, and 2 x; so is the policy's first mean: (x, 0, 0).

    The transition was recorded at x = 0. Every imagined step adds 1, and the second is drawn: x = 1, and 2 after it.
    There, without noise, the policy's actions have log-density -1.5 ln(2 pi) - ln(1 - tanh(x)^2): -1.889254 at 1,
    -0.106814 at 2; the even one's is -3 ln 2: ln(e^1.889254 + e^0.106814 + 8) = 2.755390. A critic's penalty is that
    and its value at x = 1, less its value at x = 0: (2.755390 + 1) + (2.755390 + 2) = 8.510780.
    """
    policy, batch = known_policy(num_model_steps=2), known_batch()
    batch.noise[0, 0] = 9.0
    batch.observation[0, 0] = 0.0
    make_constant(policy.dynamics.members, [[1.0, *member[1:]] for member in MEMBERS])
    policy.critic = ObservationCritics()
    policy._distribution = (
        lambda observation, goal: SquashedGaussian(  # type: ignore[method-assign]
            observation[:, :3] * torch.tensor([1.0, 0.0, 0.0]), torch.zeros(len(observation), 3)
        )
    )
    assert policy.losses(batch)["conservative_loss"].tolist() == pytest.approx([8.510780], abs=1e-4)


@pytest.mark.parametrize(
    ("loss", "trained"),
    [
        ("outcome_loss", "dynamics"),
        ("termination_loss", "dynamics"),
        ("critic_loss", "critic"),
        ("conservative_loss", "critic"),
        ("policy_loss", "policy"),
        ("temperature_loss", "temperature"),
    ],
)
def test_each_loss_trains_its_own_network(loss: str, trained: str) -> None:
    """No gradient runs through what is imagined, nor from the policy's loss into the critic."""
    policy = COMBO(CONTINUOUS)
    policy.losses(transition_batch(CONTINUOUS))[loss].sum().backward()
    moved = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in policy.named_parameters() if name.startswith(f"{trained}.")}


def test_the_model_learns_alone_at_first() -> None:
    """Two updates of warm-up: the policy's losses begin with update 2."""
    policy, batch, counts = COMBO(CONTINUOUS, dynamics_warmup_updates=2), transition_batch(CONTINUOUS), []
    for number in range(4):
        policy.begin_update(number)
        counts.append(len(policy.losses(batch)))
    assert counts == [2, 2, 6, 6]


def test_every_network_takes_steps_of_its_own_size() -> None:
    """The paper's: critics 3e-4, policy and temperature 1e-4, the model 1e-3."""
    rates = {group["name"]: group["lr"] for group in COMBO(CONTINUOUS).configure_optimizers().param_groups}
    assert rates == {"dynamics": 1e-3, "critic": 3e-4, "policy": 1e-4, "temperature": 1e-4}


def test_it_does_the_squashed_mean() -> None:
    """Output (0, 20, -20) and any deviation: the tanh of the mean."""
    policy, batch = COMBO(CONTINUOUS), transition_batch(CONTINUOUS)
    make_constant(policy.policy, [0.0, 20.0, -20.0, 1.0, 1.0, 1.0])
    assert policy.act(batch.observation, batch.goal_embedding)[0].tolist() == pytest.approx([0.0, 1.0, -1.0])


@pytest.mark.parametrize(
    "options",
    [
        {"conservative_weight": -1.0}, {"real_fraction": 1.5}, {"num_model_steps": 0}, {"num_sampled_actions": 0},
        {"num_dynamics_members": 0}, {"dynamics_warmup_updates": -1}, {"policy_learning_rate": 0.0},
        {"dynamics_learning_rate": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    """The error names the option and its value."""
    name, value = next(iter(options.items()))
    with pytest.raises(KalmError, match=f"{name} is {value}"):
        COMBO(CONTINUOUS, **options)


def test_discrete_actions_are_refused() -> None:
    """The error says what to use."""
    with pytest.raises(KalmError, match=r"continuous actions.*AWAC"):
        COMBO(DISCRETE)
