"""COMBO: learn a model of the world, and trust values of what it makes up less than values of what was recorded.

Critics learn from recorded transitions and from short rollouts of the policy in the model. Values at the rollouts'
observations are pushed down, values of recorded actions up, so that wherever the model errs the policy gains nothing.

Paper: Yu et al. 2021 (arXiv:2102.08363), on soft actor-critic (Haarnoja et al. 2018, arXiv:1812.05905).

Equation -> function: model, eq. 1 -> ``DynamicsEnsemble.losses``; the mixture d_f of recorded and imagined transitions
and the Bellman error, eq. 2 -> ``td_target`` and the squared error; the penalty of eq. 2, as a soft maximum over
actions at imagined observations -> ``sampled_cql_penalty``; eq. 3 -> ``soft_policy_loss``, ``temperature_loss``.

Differences from the paper: 1. the model learns along with the policy and on the same minibatches, the first
``dynamics_warmup_updates`` of them alone, where the authors train it first, until held-out data stop improving; 2. no
elites: no data are held out to choose them by, so all members are used; each row of a minibatch asks one member
throughout its rollout; 3. rollouts branch off the present minibatch at every update, and one step of each is used,
where the authors keep rollouts of older policies in a buffer; 4. the model also learns when a task ends, and what it
imagines beyond a likely end counts less, where the authors know the rule of each benchmark; 5. ReLU, no weight decay,
fixed bounds of the model's deviations; 6. actions of the policy are pushed down at imagined observations and at those
that follow, and evenly spread ones as well, as in CQL, and the samples' exponentials are summed; 7. the next action is
valued without its entropy; 8. all networks take one step together.

``torchrl.objectives`` has no COMBO.

Shape letters: B batch, O observation, E goal embedding, A action, N critics, M sampled actions of a kind, Z noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kalm.core.errors import require
from kalm.core.specs import TaskSpec
from kalm.rl.base import OfflineRLModule
from kalm.rl.dynamics.dynamics_ensemble import (
    DynamicsEnsemble,
    ImaginedTransition,
    imagined_transitions,
    noise_size,
)
from kalm.rl.losses import sampled_cql_penalty, soft_policy_loss, td_target, temperature_loss
from kalm.rl.networks.gaussian_policies import LearnedScale, SquashedGaussian, sampled_actions
from kalm.rl.networks.mlp import critic_network, goal_conditioned_mlp
from kalm.rl.training.batches import TransitionBatch


class COMBO(OfflineRLModule):
    """COMBO for continuous actions."""

    needs_continuous_actions = True

    def __init__(
        self,
        spec: TaskSpec,
        conservative_weight: float = 1.0,
        real_fraction: float = 0.5,
        num_model_steps: int = 5,
        num_sampled_actions: int = 10,
        num_dynamics_members: int = 7,
        dynamics_hidden_sizes: Sequence[int] = (200, 200, 200, 200),
        dynamics_warmup_updates: int = 10_000,
        learning_rate: float = 3e-4,
        policy_learning_rate: float = 1e-4,
        dynamics_learning_rate: float = 1e-3,
        **options: Any,
    ) -> None:
        """Build model, policy, critics and targets.

        Args:
            spec: Sizes of observation, action and goal embedding; the command line takes them from the data.
            conservative_weight: Weight beta of the penalty, 0 or more (paper: 0.5, 1 or 5, chosen for each data set).
            real_fraction: Weight f of recorded transitions in the losses of critics and policy, in [0, 1]; imagined
                ones have the rest (paper: 0.5).
            num_model_steps: Steps of a rollout in the model (paper: 5, or 1 where the model is poor).
            num_sampled_actions: Actions, M, of each of three kinds that the penalty prices (CQL: 10).
            num_dynamics_members: Members of the model's ensemble (paper: 7, of which the best 5 are used).
            dynamics_hidden_sizes: Width of each hidden layer of the model (paper: four of 200).
            dynamics_warmup_updates: Updates at the start that train the model alone; they count as updates.
            learning_rate: Adam's step size for the critics (paper: 3e-4, at batch 256).
            policy_learning_rate: Adam's step size for policy and temperature (paper: 1e-4).
            dynamics_learning_rate: Adam's step size for the model (authors' code: 1e-3).
            options: Options that all algorithms share.
        """
        super().__init__(spec, learning_rate=learning_rate, **options)
        require(conservative_weight >= 0, "conservative_weight", conservative_weight, "0 or more")
        require(0 <= real_fraction <= 1, "real_fraction", real_fraction, "in [0, 1]")
        require(num_model_steps >= 1, "num_model_steps", num_model_steps, "1 or more")
        require(num_sampled_actions >= 1, "num_sampled_actions", num_sampled_actions, "1 or more")
        require(num_dynamics_members >= 1, "num_dynamics_members", num_dynamics_members, "1 or more")
        require(dynamics_warmup_updates >= 0, "dynamics_warmup_updates", dynamics_warmup_updates, "0 or more")
        require(policy_learning_rate > 0, "policy_learning_rate", policy_learning_rate, "above 0")
        require(dynamics_learning_rate > 0, "dynamics_learning_rate", dynamics_learning_rate, "above 0")
        self.conservative_weight, self.real_fraction = conservative_weight, real_fraction
        self.num_model_steps, self.num_sampled_actions = num_model_steps, num_sampled_actions
        self.dynamics_warmup_updates = dynamics_warmup_updates
        self.learning_rate_of = dict.fromkeys(("policy", "temperature"), policy_learning_rate)
        self.learning_rate_of["dynamics"] = dynamics_learning_rate
        self.updates_policy = True
        self.dynamics = DynamicsEnsemble(spec, num_dynamics_members, dynamics_hidden_sizes)
        self.critic = critic_network(spec, self.hidden_sizes)
        self.target_critic = self.target_of(self.critic)
        self.policy = goal_conditioned_mlp(spec, self.hidden_sizes, 2 * spec.action_size)
        self.temperature = LearnedScale()
        self._noise_sizes = [
            noise_size(num_model_steps, spec.observation_size, spec.action_size),
            4 * spec.action_size,
            3 * num_sampled_actions * spec.action_size,
        ]
        self.noise_size = sum(self._noise_sizes)

    def begin_update(self, number: int) -> None:
        """Say whether the model is old enough for critics and policy to learn from it."""
        self.updates_policy = number >= self.dynamics_warmup_updates

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """The model's two losses; after the warm-up the critics' two, the policy's and the temperature's."""
        outcome_loss, termination_loss = self.dynamics.losses(batch)
        losses = {"outcome_loss": outcome_loss, "termination_loss": termination_loss}
        return {**losses, **self._policy_losses(batch)} if self.updates_policy else losses

    def act(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The policy's likeliest action, before squashing."""
        return self._distribution(observation, goal_embedding).mode

    def _policy_losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Losses of critics, policy and temperature, on recorded and imagined transitions, the latter below them."""
        num_recorded = len(batch.reward)
        of_rollout, of_actions, of_penalty = batch.noise[:, : self.noise_size].split(self._noise_sizes, dim=-1)
        imagined = imagined_transitions(
            self.dynamics, self._distribution, batch.observation, batch.goal_embedding, self.num_model_steps, of_rollout
        )
        noise_now, noise_next = (torch.cat(part.chunk(2, dim=-1)) for part in of_actions.chunk(2, dim=-1))
        observation = torch.cat([batch.observation, imagined.observation])
        goal_embedding = torch.cat([batch.goal_embedding, batch.goal_embedding])
        now = self._distribution(observation, goal_embedding)
        action, log_probability = now.sample(noise_now)
        with torch.no_grad():
            next_observation = torch.cat([batch.next_observation, imagined.next_observation])
            later = self._distribution(next_observation, goal_embedding)
            next_action, _ = later.sample(noise_next)
            next_q = self.target_critic(next_observation, goal_embedding, next_action).squeeze(-1).amin(0)
            target = self._target(batch, imagined, next_q)
            priced = [now[num_recorded:], later[num_recorded:]]
            sampled, log_density = sampled_actions(priced, of_penalty.unflatten(-1, (3, self.num_sampled_actions, -1)))
        critic = self.critic.given(observation, goal_embedding)
        q = critic(torch.cat([batch.action, imagined.action])).squeeze(-1)
        value = critic(action, frozen=True).squeeze(-1).amin(0)
        sampled_q = critic[num_recorded:](sampled).squeeze(-1)
        recorded_q = q[:, :num_recorded]
        penalty = sampled_cql_penalty(sampled_q, log_density, recorded_q).sum(0)
        temperature = self.temperature()
        self.measure("q_mean", recorded_q.mean(0))
        self.measure("temperature", temperature.expand_as(penalty))
        self.measure("survival", imagined.survival)
        return {
            "critic_loss": self._mixed((q - target).square().sum(0), imagined),
            "conservative_loss": self.conservative_weight * penalty,
            "policy_loss": self._mixed(soft_policy_loss(value, log_probability, temperature), imagined),
            "temperature_loss": self._mixed(
                temperature_loss(self.temperature.logarithm, log_probability, -self.spec.action_size), imagined
            ),
        }

    def _distribution(self, observation: Tensor, goal_embedding: Tensor) -> SquashedGaussian:
        return SquashedGaussian.from_output(self.policy(observation, goal_embedding))

    def _target(self, batch: TransitionBatch, imagined: ImaginedTransition, next_q: Tensor) -> Tensor:
        """Targets of recorded transitions, then of imagined ones, shape (2 * B,)."""
        real_q, imagined_q = next_q.chunk(2)
        real = td_target(batch.reward, self.discount, real_q, batch.terminated)
        return torch.cat([real, imagined.reward + self.discount * (1 - imagined.termination) * imagined_q])

    def _mixed(self, loss: Tensor, imagined: ImaginedTransition) -> Tensor:
        """Losses of recorded transitions and of the imagined ones below them, (2 * B,), as one a row, (B,)."""
        of_real, of_imagined = loss.chunk(2)
        return self.real_fraction * of_real + (1 - self.real_fraction) * imagined.survival * of_imagined
