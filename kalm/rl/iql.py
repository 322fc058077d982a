"""Implicit Q-learning: learn what the best recorded actions are worth, never asking for the value of any other.

The value of an observation is an upper expectile of the recorded actions' Q-values, so it stands for a good action
without anyone having to find it. Q is learned from that value, and the policy copies recorded actions, the better the
more.

Paper: Kostrikov et al. 2021 (arXiv:2110.06169), defaults of its locomotion tasks.

Equation -> function: eq. 5 -> ``expectile_loss``; eq. 6 -> ``td_target`` and the squared error; eq. 7 ->
``advantage_weight`` times the log-likelihood.

Differences from the paper: 1. value, Q and policy take one step together from the same networks, where the authors'
code updates the value first and lets the other two see the new one; 2. the policy's step size follows no cosine unless
a schedule is configured; 3. no dropout in the policy, which the authors use on Adroit and Kitchen. Discrete actions,
which the paper leaves out: the same three equations with Q(s, .) in one pass and a categorical policy.

``torchrl.objectives.IQLLoss`` and ``DiscreteIQLLoss`` are not used: they run the two critics through ``vmap`` over
copied parameters, evaluate the value twice, and need a TensorDict module around every network.

Shape letters: B batch, O observation, E goal embedding, A action, N critics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kalm.core.errors import require
from kalm.core.specs import Spec
from kalm.rl.base import OfflineRLModule
from kalm.rl.losses import (
    advantage_weight,
    expectile_loss,
    gaussian_log_probability,
    imitation_loss,
    td_target,
    value_of_action,
)
from kalm.rl.networks.gaussian_policies import LogDeviation
from kalm.rl.networks.mlp import EnsembleMLP, critic_network, goal_conditioned_mlp
from kalm.rl.training.batches import TransitionBatch

_LOG_DEVIATION_RANGE = (-10.0, 2.0)  # the authors' code


class IQL(OfflineRLModule):
    """Implicit Q-learning, discrete or continuous as the domain's actions are."""

    def __init__(
        self,
        spec: Spec,
        expectile: float = 0.7,
        inverse_temperature: float = 3.0,
        max_advantage_weight: float = 100.0,
        learning_rate: float = 3e-4,
        **options: Any,
    ) -> None:
        """Build value, critics and policy.

        Args:
            spec: Sizes of observation, action and goal embedding; the command line takes them from the data.
            expectile: Which expectile of the recorded actions' Q-values the value is, in (0, 1); 0.5 is their mean,
                towards 1 their best (paper: 0.7; 0.9 on tasks that stitch rollouts together).
            inverse_temperature: How much more a better action is copied, 0 or more, in units of one over reward
                (paper: 3; 10 on tasks that stitch).
            max_advantage_weight: Most that one transition counts in the policy's loss (authors' code: 100).
            learning_rate: Adam's step size for every network (paper: 3e-4, at batch 256).
            options: Options that all algorithms share.
        """
        super().__init__(spec, learning_rate=learning_rate, **options)
        require(0 < expectile < 1, "expectile", expectile, "between 0 and 1")
        require(inverse_temperature >= 0, "inverse_temperature", inverse_temperature, "0 or more")
        require(max_advantage_weight > 0, "max_advantage_weight", max_advantage_weight, "above 0")
        self.expectile, self.inverse_temperature = expectile, inverse_temperature
        self.max_advantage_weight = max_advantage_weight
        self.value = goal_conditioned_mlp(spec, self.hidden_sizes, 1)
        self.critic = critic_network(spec, self.hidden_sizes)
        self.target_critic = self.target_of(self.critic)
        self.policy = goal_conditioned_mlp(spec, self.hidden_sizes, spec.action_size)
        if not spec.is_discrete:
            self.log_deviation = LogDeviation(spec.action_size, *_LOG_DEVIATION_RANGE, first_deviation=1.0)

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """The value's expectile regression, both critics' temporal-difference error, weighted imitation."""
        value = self.value(batch.observation, batch.goal_embedding).squeeze(-1)
        q = self._recorded_q(self.critic, batch)
        with torch.no_grad():
            recorded_value = self._recorded_q(self.target_critic, batch).amin(0)
            next_value = self.value(batch.next_observation, batch.goal_embedding).squeeze(-1)
            target = td_target(batch.reward, self.discount, next_value, batch.terminated)
        advantage = recorded_value - value
        weight = advantage_weight(advantage, self.inverse_temperature, self.max_advantage_weight)
        self.measure("q_mean", q.mean(0))
        self.measure("advantage_weight", weight)
        return {
            "value_loss": expectile_loss(advantage, self.expectile),
            "critic_loss": (q - target).square().sum(0),
            "policy_loss": weight * self._imitation_loss(batch),
        }

    def act(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The likeliest action, or the mean of a continuous one."""
        output = self.policy(observation, goal_embedding)
        return self.choose(output) if self.spec.is_discrete else torch.tanh(output)

    def _recorded_q(self, critic: EnsembleMLP, batch: TransitionBatch) -> Tensor:
        """Each critic's value of the recorded action, shape (N, B)."""
        if self.spec.is_discrete:
            return value_of_action(critic(batch.observation, batch.goal_embedding), batch.action)
        return critic(batch.observation, batch.goal_embedding, batch.action).squeeze(-1)

    def _imitation_loss(self, batch: TransitionBatch) -> Tensor:
        """Negative log-likelihood of the recorded action, shape (B,)."""
        output = self.policy(batch.observation, batch.goal_embedding)
        if self.spec.is_discrete:
            return imitation_loss(functional.log_softmax(output, dim=-1), batch.action)
        return -gaussian_log_probability(batch.action, torch.tanh(output), self.log_deviation())
