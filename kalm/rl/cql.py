"""Conservative Q-learning: learn values by temporal differences, and push down those of actions the data never took.

Paper: Kumar et al. 2020 (arXiv:2006.04779), CQL(H). For discrete actions on double DQN (van Hasselt et al. 2016,
arXiv:1509.06461) with the hyper-parameters of KALM (arXiv:2404.09248, section 5); for continuous ones on soft
actor-critic (Haarnoja et al. 2018, arXiv:1812.05905) with those of the authors' code. The action space decides.

Equation -> function: Bellman error of eq. 1 -> ``td_target``, ``huber_td_loss`` or the squared error; eq. 4 ->
``cql_penalty``, or by samples, appendix F, ``sampled_cql_penalty``; its weight by dual descent, section 3.2 and
appendix F -> ``lagrange_loss``; policy and temperature -> ``soft_policy_loss``, ``temperature_loss``.

With discrete actions and ``conservative_weight`` 0 it is double DQN and nothing else (``conf/babyai/dqn.yaml``).

Differences from the paper, discrete: 1. the Bellman error is Huber's, as in DQN and in d3rlpy, which KALM used; 2. one
critic, whose target is copied whole every ``target_update_interval`` updates, again as there. Continuous, 1 to 4 as in
the authors' code: 1. the squared error without the half; 2. the next observation's action is valued without its
entropy; 3. actions for the next observation are among those that are priced; 4. the samples' exponentials are summed,
not averaged; 5. all networks take one step together, and the policy's loss uses one of the actions that are drawn for
the penalty; 6. no phase of behaviour cloning at the start.

``torchrl.objectives.DiscreteCQLLoss`` and ``CQLLoss`` compute the same terms; they are not used because they reduce
them, so that real and imagined transitions could not be told apart, and because they are slower: the discrete one by
measurement (tests/benchmarks/policy_throughput.py), the continuous one because it evaluates every sampled action with
its observation and goal repeated, whose products are shared here.

Shape letters: B batch, O observation, E goal embedding, A action or actions, N critics, M sampled actions of a kind.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kalm.core.errors import require
from kalm.core.specs import Spec
from kalm.rl.base import OfflineRLModule
from kalm.rl.losses import (
    cql_penalty,
    huber_td_loss,
    sampled_cql_penalty,
    soft_policy_loss,
    td_target,
    temperature_loss,
    value_of_action,
)
from kalm.rl.networks.gaussian_policies import LearnedScale, SquashedGaussian, sampled_actions
from kalm.rl.networks.mlp import critic_network, goal_conditioned_mlp
from kalm.rl.training.batches import TransitionBatch

_MAX_MULTIPLIER = 1e6  # the authors' code


class CQL(OfflineRLModule):
    """Conservative Q-learning, discrete or continuous as the domain's actions are."""

    critic: Any  # one network for discrete actions, an ensemble for continuous ones

    def __init__(
        self,
        spec: Spec,
        conservative_weight: float | None = None,
        learning_rate: float | None = None,
        target_update_rate: float | None = None,
        target_update_interval: int | None = None,
        policy_learning_rate: float = 1e-4,
        num_sampled_actions: int = 10,
        lagrange_threshold: float | None = None,
        **options: Any,
    ) -> None:
        """Build critics and targets, and for continuous actions the policy.

        Args:
            spec: Sizes of observation, action and goal embedding; the command line takes them from the data.
            conservative_weight: Weight alpha of the conservative penalty; null is 10 for discrete actions (KALM) and 5
                for continuous ones (authors' code).
            learning_rate: Adam's step size for the critics; null is 6.25e-5 for discrete actions (paper, at batch 32)
                and 3e-4 for continuous ones (paper, at batch 256).
            target_update_rate: Part of the target that is replaced at each of its updates; null is 1 for discrete
                actions (d3rlpy) and 0.005 for continuous ones (paper).
            target_update_interval: Updates between two updates of the target; null is 8000 for discrete actions
                (d3rlpy) and 1 for continuous ones (paper).
            policy_learning_rate: Continuous: Adam's step size for policy and temperature (authors' code: 1e-4; paper:
                3e-5).
            num_sampled_actions: Continuous: actions, M, of each of three kinds that the penalty prices (paper: 10).
            lagrange_threshold: Continuous: how large the weighted penalty of a critic may be; a learned factor then
                raises or lowers it (authors' code: 10 where it is used). Null leaves the weight as it is.
            options: Options that all algorithms share.
        """
        is_discrete = spec.is_discrete
        super().__init__(
            spec,
            learning_rate=_either(learning_rate, 6.25e-5 if is_discrete else 3e-4),
            target_update_rate=_either(target_update_rate, 1.0 if is_discrete else 0.005),
            target_update_interval=int(_either(target_update_interval, 8000 if is_discrete else 1)),
            **options,
        )
        self.conservative_weight = _either(conservative_weight, 10.0 if is_discrete else 5.0)
        require(self.conservative_weight >= 0, "conservative_weight", conservative_weight, "0 or more")
        require(policy_learning_rate > 0, "policy_learning_rate", policy_learning_rate, "above 0")
        require(num_sampled_actions >= 1, "num_sampled_actions", num_sampled_actions, "1 or more")
        self.learning_rate_of = dict.fromkeys(("policy", "temperature"), policy_learning_rate)
        self.num_sampled_actions, self.lagrange_threshold = num_sampled_actions, lagrange_threshold
        if is_discrete:
            self.critic = goal_conditioned_mlp(spec, self.hidden_sizes, spec.action_size)
        else:
            self.critic = critic_network(spec, self.hidden_sizes)
            self.policy = goal_conditioned_mlp(spec, self.hidden_sizes, 2 * spec.action_size)
            self.temperature = LearnedScale()
            self.noise_size = 3 * num_sampled_actions * spec.action_size
            if lagrange_threshold is not None:
                self.multiplier = LearnedScale()
        self.target_critic = self.target_of(self.critic)

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """The losses that the action space calls for."""
        return self._discrete_losses(batch) if self.spec.is_discrete else self._continuous_losses(batch)

    def act(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The action of the greatest value, or the policy's likeliest before squashing."""
        if self.spec.is_discrete:
            return self.choose(self.critic(observation, goal_embedding))
        return SquashedGaussian.from_output(self.policy(observation, goal_embedding)).mode

    # --- discrete actions --------------------------------------------------------------------------------------------

    def _discrete_losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """The temporal-difference error and the weighted conservative penalty."""
        q = self.critic(batch.observation, batch.goal_embedding)
        value = value_of_action(q, batch.action)
        with torch.no_grad():
            next_action = self.act(batch.next_observation, batch.goal_embedding)
            next_q = self.target_critic(batch.next_observation, batch.goal_embedding)
            target = td_target(batch.reward, self.discount, value_of_action(next_q, next_action), batch.terminated)
        self.measure("q_mean", value)
        return {
            "td_loss": huber_td_loss(value, target),
            "conservative_loss": self.conservative_weight * cql_penalty(q, batch.action),
        }

    # --- continuous actions ------------------------------------------------------------------------------------------

    def _continuous_losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Both critics' two losses, the Lagrange multiplier's if there is one, the policy's and the temperature's."""
        noise = batch.noise[:, : self.noise_size].unflatten(-1, (3, self.num_sampled_actions, -1))
        now = SquashedGaussian.from_output(self.policy(batch.observation, batch.goal_embedding))
        action, log_probability = now.sample(noise[:, 0, 0])
        with torch.no_grad():
            later = SquashedGaussian.from_output(self.policy(batch.next_observation, batch.goal_embedding))
            sampled, log_density = sampled_actions([now, later], noise)
            target = self._target(batch, sampled[:, self.num_sampled_actions])  # the first of those for later
        critic = self.critic.given(batch.observation, batch.goal_embedding)
        q = critic(torch.cat([batch.action.unsqueeze(1), sampled], dim=1)).squeeze(-1)  # (N, B, 1 + 3 * M)
        value = critic(action, frozen=True).squeeze(-1).amin(0)
        penalty = self.conservative_weight * sampled_cql_penalty(q[..., 1:], log_density, q[..., 0])
        self.measure("q_mean", q[..., 0].mean(0))
        self.measure("temperature", self.temperature().expand_as(value))
        return {
            "td_loss": (q[..., 0] - target).square().sum(0),
            **self._conservative_losses(penalty),
            "policy_loss": soft_policy_loss(value, log_probability, self.temperature()),
            "temperature_loss": temperature_loss(self.temperature.logarithm, log_probability, -self.spec.action_size),
        }

    def _target(self, batch: TransitionBatch, next_action: Tensor) -> Tensor:
        """What the lower target critic says, shape (B,)."""
        next_q = self.target_critic(batch.next_observation, batch.goal_embedding, next_action).squeeze(-1)
        return td_target(batch.reward, self.discount, next_q.amin(0), batch.terminated)

    def _conservative_losses(self, penalty: Tensor) -> dict[str, Tensor]:
        """The weighted penalties of both critics, (N, B); with a threshold times what it takes to keep to it."""
        if self.lagrange_threshold is None:
            return {"conservative_loss": penalty.sum(0)}
        excess, multiplier = penalty - self.lagrange_threshold, self.multiplier().clamp(max=_MAX_MULTIPLIER)
        self.measure("multiplier", multiplier.expand(penalty.shape[-1]))
        return {
            "conservative_loss": (multiplier.detach() * excess).sum(0),
            "lagrange_loss": -(multiplier * excess.detach()).mean(0),
        }


def _either(given: float | None, default: float) -> float:
    return default if given is None else given
