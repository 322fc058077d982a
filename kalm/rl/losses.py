"""Losses that more than one algorithm may use: tensors in, one number a transition out.

From temporal differences and imitation, which most papers build on, to the terms of single families: expectiles,
weighted imitation, the conservative penalty, soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905), Gaussians.

Shape letters: B batch, A actions, N critics, M sampled actions, D components.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def td_target(reward: Tensor, discount: float, next_value: Tensor, terminated: Tensor) -> Tensor:
    """What a step turned out to be worth: its reward, plus the discounted value of where it led unless the task ended.

    A step that was merely truncated still bootstraps, which is why only ``terminated`` is asked for.

    Args:
        reward: Shape (B,).
        discount: Worth of a reward one step later, in [0, 1].
        next_value: Value of the next observation, shape (B,). Gradients flow through it unless the caller stops them.
        terminated: True where the task ended, shape (B,).

    Returns:
        Target per transition, shape (B,).
    """
    return torch.where(terminated, reward, reward + discount * next_value)


def huber_td_loss(value: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Pull a value towards its target: half the squared error up to ``delta``, linear beyond (Mnih et al., 2015).

    The linear part keeps one large reward from dominating an update.

    Args:
        value: Value of the recorded action, shape (B,).
        target: Shape (B,); the caller stops its gradient.
        delta: Error at which the loss becomes linear, in units of reward.

    Returns:
        Loss per transition, shape (B,), not reduced.
    """
    return functional.huber_loss(value, target, reduction="none", delta=delta)


def value_of_action(q: Tensor, action: Tensor) -> Tensor:
    """Pick the value of one action a transition.

    Args:
        q: Value of every discrete action, shape (..., B, A); leading dimensions, such as N critics, read the same one.
        action: Action index, shape (B,), int64, in [0, A).

    Returns:
        Shape (..., B).
    """
    return q.gather(-1, action.unsqueeze(-1).expand(*q.shape[:-1], 1)).squeeze(-1)


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """Squared error that weighs being too low by ``expectile``, being too high by one minus it.

    At 0.5 it is half the squared error and finds the mean. Nearer to 1 it finds the best of what the data show: for a
    value that regresses on Q, the value of a good action that was recorded. This is L_2^tau, Eq. 4 of Kostrikov et
    al. 2021 (arXiv:2110.06169), whose tau is the expectile.

    Args:
        error: Target minus prediction, shape (B,).
        expectile: Which one, in (0, 1).

    Returns:
        Loss per transition, shape (B,), not reduced.
    """
    return torch.where(error > 0, expectile, 1 - expectile) * error.square()


def imitation_loss(log_probability: Tensor, action: Tensor) -> Tensor:
    """Make the recorded action likely: the negative log-likelihood of a categorical policy.

    Args:
        log_probability: Log of the policy's probability of each action, shape (B, A).
        action: Recorded action index, shape (B,), int64, in [0, A).

    Returns:
        Loss per transition, shape (B,), in nats, not reduced.
    """
    return functional.nll_loss(log_probability, action, reduction="none")


def log_probability_penalty(log_probability: Tensor) -> Tensor:
    """Keep a categorical policy from being certain: the mean over actions of the squared log-probability.

    It is smallest for the uniform policy, (ln A)^2, and grows without bound as any action becomes impossible.

    Args:
        log_probability: Log of the policy's probability of each action, shape (B, A).

    Returns:
        Penalty per transition, shape (B,), before its weight, not reduced.
    """
    return log_probability.square().mean(dim=-1)


def squared_action_error(predicted: Tensor, action: Tensor) -> Tensor:
    """Make a deterministic policy answer with the recorded action: the mean squared error over action components.

    Args:
        predicted: The policy's action, shape (B, A).
        action: Recorded action, shape (B, A), in [-1, 1].

    Returns:
        Loss per transition, shape (B,), not reduced.
    """
    return (predicted - action).square().mean(dim=-1)


def advantage_weight(advantage: Tensor, inverse_temperature: float, max_weight: float) -> Tensor:
    """How often a recorded action counts when it is copied: exponentially more, the better it turned out.

    At an inverse temperature of 0 every action counts once, which is behaviour cloning; without bound, only the best
    ones count, which is Q-learning over the recorded actions. The weight is clipped because a few large advantages
    would otherwise drown the rest. Eq. 7 of Kostrikov et al. 2021 (arXiv:2110.06169); Peng et al. 2019
    (arXiv:1910.00177).

    Args:
        advantage: Value of the recorded action minus the value of its observation, shape (B,).
        inverse_temperature: How much more a better action counts, 0 or more, in units of one over reward.
        max_weight: Largest weight, above 0.

    Returns:
        Weight per transition, shape (B,), in (0, ``max_weight``], without gradient.
    """
    return torch.exp(inverse_temperature * advantage.detach()).clamp(max=max_weight)


def cql_penalty(q: Tensor, action: Tensor) -> Tensor:
    """Price actions the dataset never tried, so that the policy is not lured by guesses.

    For each transition: the log-sum-exp of Q over all actions, minus Q of the recorded action. It nears zero
    only when the recorded action dominates, so minimising it pushes unseen actions down.
    This is the regulariser of CQL(H), Eq. 4 of Kumar et al. 2020 (arXiv:2006.04779), discrete actions, before
    the weight alpha, which the caller applies.

    Args:
        q: Value of every action, shape (B, A), in units of discounted reward.
        action: Recorded action index, shape (B,), int64, in [0, A).

    Returns:
        Penalty per transition, shape (B,), never negative, not reduced.

    Raises:
        ValueError: If ``q`` is not 2-D or ``action`` is not shape (B,).
    """
    if q.ndim != 2 or action.shape != q.shape[:1]:
        raise ValueError(f"cql_penalty needs q of shape (B, A) and action of shape (B,); got {q.shape}, {action.shape}")
    return torch.logsumexp(q, dim=-1) - q.gather(-1, action.unsqueeze(-1)).squeeze(-1)


def sampled_cql_penalty(sampled_q: Tensor, log_density: Tensor, recorded_q: Tensor) -> Tensor:
    """The same penalty where actions are vectors: the sum over all actions becomes one over samples of them.

    Each sample counts by one over the density that it was drawn with, as importance sampling asks. This is appendix F
    of Kumar et al. 2020 (arXiv:2006.04779), but for a constant: like the authors' code it adds the M samples up, where
    the paper takes their mean, so it is greater by ln M. It may be negative where few samples are drawn.

    Args:
        sampled_q: Value of each sampled action, shape (..., B, M), in units of discounted reward.
        log_density: Logarithm of the density that each was drawn with, shape (B, M), in nats.
        recorded_q: Value of the recorded action, shape (..., B).

    Returns:
        Penalty per transition, shape (..., B), before its weight, not reduced.
    """
    return torch.logsumexp(sampled_q - log_density, dim=-1) - recorded_q


def soft_policy_loss(value: Tensor, log_probability: Tensor, temperature: Tensor) -> Tensor:
    """Prefer actions of great value, and among them those that are not always the same.

    Eq. 7 of Haarnoja et al. 2018 (arXiv:1812.05905). The temperature passes no gradient on: it has a loss of its own.

    Args:
        value: Value of a sampled action, which gradients reach the policy through, shape (B,).
        log_probability: Logarithm of its density, shape (B,), in nats.
        temperature: Worth of a nat of entropy, shape (1,), above 0.

    Returns:
        Loss per transition, shape (B,), not reduced.
    """
    return temperature.detach() * log_probability - value


def temperature_loss(log_temperature: Tensor, log_probability: Tensor, target_entropy: float) -> Tensor:
    """Raise the temperature while the policy's entropy is below its target, and lower it while it is above.

    Eq. 18 of Haarnoja et al. 2018 (arXiv:1812.05905), with the logarithm of the temperature in its place as in the
    authors' code: the slope has the same sign, and does not fade where the temperature is near 0.

    Args:
        log_temperature: Shape (1,).
        log_probability: Logarithm of the density of a sampled action, shape (B,), in nats; passes no gradient on.
        target_entropy: In nats; minus the number of components of an action in the paper.

    Returns:
        Loss per transition, shape (B,), not reduced.
    """
    return -log_temperature * (log_probability.detach() + target_entropy)


def gaussian_log_probability(values: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Logarithm of the density of ``values`` under independent normal distributions.

    Args:
        values: Where, shape (..., D).
        mean: Shape (..., D).
        log_deviation: Logarithm of the standard deviation, of a shape that broadcasts to (..., D).

    Returns:
        Sum over the components, shape (...), in nats, not reduced over the batch.
    """
    scaled = (values - mean) * (-log_deviation).exp()
    return (-0.5 * scaled.square() - log_deviation - 0.5 * math.log(2 * math.pi)).sum(-1)


def standard_normal_divergence(mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Keep codes where they are drawn from later: the divergence of a normal distribution from the standard normal.

    Kullback-Leibler, as in the evidence bound of a variational autoencoder (Kingma & Welling 2013, arXiv:1312.6114,
    appendix B); 0 only for the standard normal itself.

    Args:
        mean: Shape (B, D).
        log_deviation: Logarithm of the standard deviation, shape (B, D).

    Returns:
        Mean over the components, shape (B,), in nats, never negative, not reduced over the batch.
    """
    variance = (2 * log_deviation).exp()
    return 0.5 * (mean.square() + variance - 1 - 2 * log_deviation).mean(-1)
