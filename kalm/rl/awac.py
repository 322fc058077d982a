"""Advantage-weighted actor-critic: copy recorded actions, the more the better they are than the policy's own.

The critics learn the value of the policy by temporal differences. The policy never climbs them: it copies recorded
actions, weighted by the exponential of their advantage, so that it stays among the actions that the data hold.

Paper: Nair et al. 2020 (arXiv:2006.09359).

Equation -> function: critics, section 4 -> ``td_target`` and the squared error; eq. 13 -> ``advantage_weight`` times
the log-likelihood; the value in the advantage -> ``_advantage``.

Differences from the paper: 1. KALM's two layers of 256 for every network, where the authors' policy has four; 2. the
weights are as in eq. 13 and cut at ``max_advantage_weight``, where the authors' code divides them by their sum over the
minibatch; a transition's loss then depends on no other's; 3. critics and policy take one step together; 4. no
fine-tuning online. Discrete actions, which the paper leaves out: the expectations over the policy are exact sums.

``torchrl.objectives`` has no AWAC.

Shape letters: B batch, O observation, E goal embedding, A action or actions, N critics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kalm.core.errors import require
from kalm.core.specs import Spec
from kalm.rl.base import OfflineRLModule
from kalm.rl.losses import advantage_weight, gaussian_log_probability, imitation_loss, td_target, value_of_action
from kalm.rl.networks.gaussian_policies import LogDeviation
from kalm.rl.networks.mlp import critic_network, goal_conditioned_mlp
from kalm.rl.training.batches import TransitionBatch

_LOG_DEVIATION_RANGE = (-6.0, 0.0)  # the authors' code


class AWAC(OfflineRLModule):
    """Advantage-weighted actor-critic, discrete or continuous as the domain's actions are."""

    def __init__(
        self,
        spec: Spec,
        temperature: float = 1.0,
        max_advantage_weight: float = 100.0,
        learning_rate: float = 3e-4,
        **options: Any,
    ) -> None:
        """Build policy and critics.

        Args:
            spec: Sizes of observation, action and goal embedding; the command line takes them from the data.
            temperature: How large an advantage makes an action count e times as much, its lambda, above 0, in units of
                reward (paper: 1 on locomotion, 0.3 on manipulation; KALM: 1).
            max_advantage_weight: Most that one transition counts in the policy's loss.
            learning_rate: Adam's step size for every network (paper: 3e-4, at batch 1024).
            options: Options that all algorithms share.
        """
        super().__init__(spec, learning_rate=learning_rate, **options)
        require(temperature > 0, "temperature", temperature, "above 0")
        require(max_advantage_weight > 0, "max_advantage_weight", max_advantage_weight, "above 0")
        self.temperature, self.max_advantage_weight = temperature, max_advantage_weight
        self.critic = critic_network(spec, self.hidden_sizes)
        self.target_critic = self.target_of(self.critic)
        self.policy = goal_conditioned_mlp(spec, self.hidden_sizes, spec.action_size)
        if not spec.is_discrete:
            self.log_deviation = LogDeviation(spec.action_size, *_LOG_DEVIATION_RANGE, first_deviation=0.5)
            self.noise_size = 2 * spec.action_size

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Both critics' temporal-difference error, and weighted imitation."""
        output = self.policy(batch.observation, batch.goal_embedding)
        if self.spec.is_discrete:
            q, advantage = self._discrete_values(batch, output.detach())
            imitation = imitation_loss(functional.log_softmax(output, dim=-1), batch.action)
        else:
            q, advantage = self._continuous_values(batch, output.detach())
            imitation = -gaussian_log_probability(batch.action, torch.tanh(output), self.log_deviation())
        with torch.no_grad():
            target = td_target(batch.reward, self.discount, self._next_value(batch), batch.terminated)
        weight = advantage_weight(advantage, 1 / self.temperature, self.max_advantage_weight)
        self.measure("q_mean", q.mean(0))
        self.measure("advantage_weight", weight)
        return {"critic_loss": (q - target).square().sum(0), "policy_loss": weight * imitation}

    def act(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The likeliest action, or the mean of a continuous one."""
        output = self.policy(observation, goal_embedding)
        return self.choose(output) if self.spec.is_discrete else torch.tanh(output)

    def _discrete_values(self, batch: TransitionBatch, output: Tensor) -> tuple[Tensor, Tensor]:
        """Each critic's value of the recorded action, (N, B), and its advantage over the policy, (B,)."""
        q = self.critic(batch.observation, batch.goal_embedding)
        lower = q.detach().amin(0)
        value = (functional.softmax(output, dim=-1) * lower).sum(-1)
        return value_of_action(q, batch.action), value_of_action(lower, batch.action) - value

    def _continuous_values(self, batch: TransitionBatch, output: Tensor) -> tuple[Tensor, Tensor]:
        """Each critic's value of the recorded action, (N, B), and its advantage over a sampled one, (B,)."""
        critic = self.critic.given(batch.observation, batch.goal_embedding)
        q = critic(batch.action).squeeze(-1)
        with torch.no_grad():
            value = critic(self._sample(output, batch.noise, 0)).squeeze(-1).amin(0)
        return q, q.detach().amin(0) - value

    def _next_value(self, batch: TransitionBatch) -> Tensor:
        """What the lower target critic expects of the policy at the next observation, shape (B,)."""
        inputs = batch.next_observation, batch.goal_embedding
        output = self.policy(*inputs)
        if self.spec.is_discrete:
            return (functional.softmax(output, dim=-1) * self.target_critic(*inputs).amin(0)).sum(-1)
        return self.target_critic(*inputs, self._sample(output, batch.noise, 1)).squeeze(-1).amin(0)

    def _sample(self, output: Tensor, noise: Tensor, number: int) -> Tensor:
        """An action of the policy by the ``number``-th part of the noise, cut at the bounds, shape (B, A)."""
        size = self.spec.action_size
        own = noise[:, number * size : (number + 1) * size]
        return (torch.tanh(output) + self.log_deviation().exp() * own).clamp(-1, 1)
