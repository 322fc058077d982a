"""Batch-constrained Q-learning: numbers worked by hand, which actions are allowed, what each loss trains."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kalm.core.errors import KalmError
from kalm.core.specs import Spec
from kalm.rl.bcq import BCQ
from kalm.rl.training.batches import TransitionBatch
from tests.rl.constant_networks import SumCritics, make_constant
from tests.rl.helpers import CONTINUOUS, DISCRETE, transition_batch


def known_batch(spec: Spec, terminated: bool = False) -> TransitionBatch:
    """One transition: action 0, or (1, 0, -1); reward 1."""
    action = torch.tensor([0]) if spec.is_discrete else torch.tensor([[1.0, 0.0, -1.0]])
    batch = transition_batch(spec, num_rows=1)
    return replace(batch, action=action, reward=torch.tensor([1.0]), terminated=torch.tensor([terminated]))


def known_discrete_policy(probabilities: list[float], **options: float) -> BCQ:
    """Q is (1, 3, 0), the target's (0, 5, 9); the data hold actions with ``probabilities``."""
    policy = BCQ(DISCRETE, discount=0.9, **options)
    make_constant(policy.critic, [1.0, 3.0, 0.0])
    make_constant(policy.target_critic, [0.0, 5.0, 9.0])
    make_constant(policy.behavior, [math.log(probability) for probability in probabilities])
    return policy


def test_discrete_losses_of_known_networks() -> None:
    """Probabilities (1/2, 0.45, 0.05) and threshold 0.3: action 2 is a tenth as likely as the likeliest, so it is out.

    Of the others the critic likes action 1; the target values it at 5: 1 + 0.9 x 5 = 5.5; Huber 4.5 - 0.5 = 4.
    Imitation: -ln(1/2) = 0.693147. Logits: 0.01 x ((ln 0.5)^2 + (ln 0.45)^2 + (ln 0.05)^2) / 3
    = 0.01 x (0.480453 + 0.637612 + 8.974412) / 3 = 0.033642.
    """
    losses = known_discrete_policy([0.5, 0.45, 0.05]).losses(known_batch(DISCRETE))
    assert list(losses) == ["td_loss", "imitation_loss", "logit_loss"]
    assert losses["td_loss"].tolist() == pytest.approx([4.0], abs=1e-5)
    assert losses["imitation_loss"].tolist() == pytest.approx([0.693147], abs=1e-5)
    assert losses["logit_loss"].tolist() == pytest.approx([0.033642], abs=1e-5)


@pytest.mark.parametrize(
    ("threshold", "action"), [(0.0, 1), (0.2, 1), (0.3, 0)], ids=["Q-learning", "likely enough", "too unlikely"]
)
def test_it_does_the_best_action_that_is_likely_enough(threshold: float, action: int) -> None:
    """Probabilities (0.7, 0.2, 0.1): action 1 is worth most and is 2/7 = 0.286 as likely as the likeliest."""
    policy = known_discrete_policy([0.7, 0.2, 0.1], probability_threshold=threshold)
    batch = transition_batch(DISCRETE)
    assert policy.act(batch.observation, batch.goal_embedding).tolist() == [action] * 6


def test_the_target_values_an_action_that_is_likely_enough() -> None:
    """Probabilities (0.7, 0.2, 0.1), threshold 0.3: only action 0 is left, though the critic likes action 1 more.

    The target values it at 0: 1 + 0.9 x 0 = 1, which Q of the recorded action 0 equals.
    """
    losses = known_discrete_policy([0.7, 0.2, 0.1]).losses(known_batch(DISCRETE))
    assert losses["td_loss"].tolist() == [0.0]


def test_discrete_terminated_step_does_not_bootstrap() -> None:
    """Nothing follows an end: the target is the reward, 1, which Q of action 0 equals."""
    losses = known_discrete_policy([0.5, 0.45, 0.05]).losses(known_batch(DISCRETE, terminated=True))
    assert losses["td_loss"].tolist() == [0.0]


def known_continuous_policy() -> BCQ:
    """Codes have mean 1/2 and deviation 1, every code is decoded to 0; critics say 1 and 2, their targets 1.5 and 3."""
    policy = BCQ(CONTINUOUS, discount=0.9)
    make_constant(policy.autoencoder.encoder, [0.5] * 6 + [0.0] * 6)
    make_constant(policy.autoencoder.decoder, [0.0] * 3)
    make_constant(policy.critic, [[1.0], [2.0]])
    make_constant(policy.target_critic, [[1.5], [3.0]])
    return policy


def test_continuous_losses_of_known_networks() -> None:
    """Reconstruction of (1, 0, -1) by 0: (1 + 0 + 1) / 3. Divergence: 0.5 x 0.5 x (1/4 + 1 - 1 - 0) = 0.0625.

    Next value 0.75 x 1.5 + 0.25 x 3 = 1.875; target 1 + 0.9 x 1.875 = 2.6875; critics
    (1 - 2.6875)^2 + (2 - 2.6875)^2 = 2.847656 + 0.472656 = 3.320312. The policy's value is the first critic's, 1.
    """
    losses = known_continuous_policy().losses(known_batch(CONTINUOUS))
    assert list(losses) == ["reconstruction_loss", "divergence_loss", "critic_loss", "policy_loss"]
    assert losses["reconstruction_loss"].tolist() == pytest.approx([2 / 3], abs=1e-6)
    assert losses["divergence_loss"].tolist() == pytest.approx([0.0625], abs=1e-6)
    assert losses["critic_loss"].tolist() == pytest.approx([3.320312], abs=1e-5)
    assert losses["policy_loss"].tolist() == [-1.0]


def test_continuous_terminated_step_does_not_bootstrap() -> None:
    """Nothing follows an end: the target is the reward, 1: (1 - 1)^2 + (2 - 1)^2 = 1."""
    losses = known_continuous_policy().losses(known_batch(CONTINUOUS, terminated=True))
    assert losses["critic_loss"].tolist() == [1.0]


def test_the_next_value_is_that_of_the_best_sampled_action() -> None:
    """Actions are decoded one by one here; s is a sum: 1.5 s if s > 0 (0.75 s + 0.25 x 3 s), else 2.5 s."""
    policy = BCQ(CONTINUOUS, max_perturbation=0.0, num_sampled_actions=4, discount=0.9)
    policy.target_critic = SumCritics()
    make_constant(policy.critic, [[0.0], [0.0]])
    batch = replace(transition_batch(CONTINUOUS, num_rows=5), terminated=torch.zeros(5, dtype=torch.bool))
    target = policy.losses(batch)["critic_loss"].div(2).sqrt()  # both critics say 0
    for row in range(5):
        sums = []
        for number in range(2, 6):
            noise = batch.noise[row, 6 * number : 6 * (number + 1)]
            inputs = batch.next_observation[row], batch.goal_embedding[row]
            sums.append(policy.autoencoder.decode(*inputs, noise.clamp(-0.5, 0.5)).sum().item())
        best = max(1.5 * s if s > 0 else 2.5 * s for s in sums)
        assert target[row].item() == pytest.approx(abs(float(batch.reward[row]) + 0.9 * best), abs=1e-5)


def test_the_target_perturbation_moves_what_is_valued_next() -> None:
    """Decoded actions are 0, which the target moves up by 0.05 and the network in training down.

    The critics of the target say s = 0.15 and 3 s: 0.75 x 0.15 + 0.25 x 0.45 = 0.225; target 1 + 0.9 x 0.225 = 1.2025.
    Critics: (1 - 1.2025)^2 + (2 - 1.2025)^2 = 0.041006 + 0.636006 = 0.677012.
    """
    policy = known_continuous_policy()
    policy.target_critic = SumCritics()
    make_constant(policy.perturbation, [-20.0] * 3)
    make_constant(policy.target_perturbation, [20.0] * 3)
    losses = policy.losses(known_batch(CONTINUOUS))
    assert losses["critic_loss"].tolist() == pytest.approx([0.677012], abs=1e-5)


def test_it_does_the_best_of_its_sampled_actions_and_always_the_same() -> None:
    """The first critic is an action's sum: no other sample of the same codes has a greater one."""
    policy, batch = BCQ(CONTINUOUS, max_perturbation=0.0), transition_batch(CONTINUOUS, num_rows=5)
    policy.critic = SumCritics()
    action = policy.act(batch.observation, batch.goal_embedding)
    for row in range(5):
        inputs = batch.observation[row], batch.goal_embedding[row]
        sums = [policy.autoencoder.sample(*inputs, noise).sum().item() for noise in policy.acting_noise]
        assert max(sums) - min(sums) > 1e-3
        assert action[row].sum().item() == pytest.approx(max(sums), abs=1e-5)
    assert torch.equal(policy.act(batch.observation, batch.goal_embedding), action)


def test_an_action_is_moved_by_the_perturbation_at_most() -> None:
    """A network that is sure (tanh(20) = 1, tanh(-20) = -1) moves 0.2 up by 0.05, and -0.98 down to the bound."""
    policy, batch = BCQ(CONTINUOUS), transition_batch(CONTINUOUS, num_rows=1)
    make_constant(policy.autoencoder.decoder, [math.atanh(0.2), math.atanh(-0.98), 0.0])
    make_constant(policy.perturbation, [20.0, -20.0, 0.0])
    action = policy.act(batch.observation, batch.goal_embedding)
    assert action[0].tolist() == pytest.approx([0.25, -1.0, 0.0], abs=1e-5)


@pytest.mark.parametrize(
    ("spec", "loss", "trained"),
    [
        (DISCRETE, "td_loss", {"critic"}),
        (DISCRETE, "imitation_loss", {"behavior"}),
        (DISCRETE, "logit_loss", {"behavior"}),
        (CONTINUOUS, "reconstruction_loss", {"autoencoder.encoder", "autoencoder.decoder"}),
        (CONTINUOUS, "divergence_loss", {"autoencoder.encoder"}),
        (CONTINUOUS, "critic_loss", {"critic"}),
        (CONTINUOUS, "policy_loss", {"perturbation"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_loss_trains_its_own_networks(spec: Spec, loss: str, trained: set[str]) -> None:
    """The perturbation looks through the critic and through the decoder without training them."""
    policy = BCQ(spec)
    policy.losses(transition_batch(spec))[loss].sum().backward()
    moved = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert moved == {name for name, _ in policy.named_parameters() if name.startswith(tuple(f"{t}." for t in trained))}


def test_actions_beyond_the_bounds_are_no_codes() -> None:
    """Codes are cut at 1/2: noise of 0.5 and of 5 decode to one action, noise of 0.1 to another."""
    policy, batch = BCQ(CONTINUOUS), transition_batch(CONTINUOUS, num_rows=1)
    inputs = batch.observation, batch.goal_embedding
    near, at, beyond = (policy.autoencoder.sample(*inputs, torch.full((1, 6), noise)) for noise in (0.1, 0.5, 5.0))
    assert torch.equal(at, beyond)
    assert not torch.equal(near, at)


@pytest.mark.parametrize(
    "options",
    [
        {"probability_threshold": 1.0},
        {"logit_penalty_weight": -1.0},
        {"max_perturbation": 1.1},
        {"num_sampled_actions": 0},
        {"lower_value_weight": 1.1},
        {"divergence_weight": -1.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    """The error names the option and its value."""
    name, value = next(iter(options.items()))
    with pytest.raises(KalmError, match=f"{name} is {value}"):
        BCQ(DISCRETE, **options)
