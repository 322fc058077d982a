"""TD3 with behaviour cloning: maximise the value of the policy's action, and stay near the recorded one.

The critics learn as in TD3. The policy climbs the first critic, whose values are divided by their mean size, so that
one weight suits every reward; a squared error to the recorded action keeps it where the critic was trained.

Paper: Fujimoto & Gu 2021 (arXiv:2106.06860), on TD3 (Fujimoto et al. 2018, arXiv:1802.09477).

Equation -> function: target of TD3, algorithm 1 -> ``_target``, ``td_target``; the policy's objective of section 4 ->
``policy_loss`` and ``squared_action_error``; its scale lambda -> ``_scale``.

Differences from the paper: 1. on every ``policy_update_interval``-th update critics and policy take their step
together, where the authors' policy already sees the new critics; 2. lambda is taken from the values of the policy's
actions, as in the authors' code, where the paper writes those of the recorded ones; 3. observations are normalised by
the base, without the 1e-3 that the authors add to the deviation.

``torchrl.objectives.TD3BCLoss`` is not used: it reduces the critics' loss over the batch, runs the critics through
``vmap`` over stacked copies of their parameters, and needs a TensorDict module around every network.

Shape letters: B batch, O observation, E goal embedding, A action, N critics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kalm.core.errors import require
from kalm.core.specs import TaskSpec
from kalm.rl.base import OfflineRLModule
from kalm.rl.losses import squared_action_error, td_target
from kalm.rl.networks.mlp import critic_network, goal_conditioned_mlp
from kalm.rl.training.batches import TransitionBatch


class TD3BC(OfflineRLModule):
    """TD3+BC for continuous actions."""

    minibatch_scaled = frozenset({"policy_loss"})
    needs_continuous_actions = True

    def __init__(
        self,
        spec: TaskSpec,
        value_weight: float = 2.5,
        target_noise: float = 0.2,
        max_target_noise: float = 0.5,
        policy_update_interval: int = 2,
        learning_rate: float = 3e-4,
        target_update_interval: int = 2,
        **options: Any,
    ) -> None:
        """Build policy, critics and their targets.

        Args:
            spec: Sizes of observation, action and goal embedding; the command line takes them from the data.
            value_weight: Weight of the value against imitation, its alpha, 0 or more; at 0 it is behaviour cloning
                (paper: 2.5; KALM: 0.5).
            target_noise: Deviation of the noise on the action that the target values, 0 or more (paper: 0.2).
            max_target_noise: Where that noise is cut, 0 or more (paper: 0.5).
            policy_update_interval: Updates of the critics for one of the policy (paper: 2).
            learning_rate: Adam's step size for every network (paper: 3e-4, at batch 256).
            target_update_interval: Updates between two updates of the targets (paper: 2, along with the policy).
            options: Options that all algorithms share.
        """
        super().__init__(spec, learning_rate=learning_rate, target_update_interval=target_update_interval, **options)
        require(value_weight >= 0, "value_weight", value_weight, "0 or more")
        require(target_noise >= 0, "target_noise", target_noise, "0 or more")
        require(max_target_noise >= 0, "max_target_noise", max_target_noise, "0 or more")
        require(policy_update_interval >= 1, "policy_update_interval", policy_update_interval, "1 or more")
        self.value_weight = value_weight
        self.target_noise, self.max_target_noise = target_noise, max_target_noise
        self.policy_update_interval = policy_update_interval
        self.updates_policy = True
        self.noise_size = spec.action_size
        self.policy = goal_conditioned_mlp(spec, self.hidden_sizes, spec.action_size)
        self.target_policy = self.target_of(self.policy)
        self.critic = critic_network(spec, self.hidden_sizes)
        self.target_critic = self.target_of(self.critic)

    def begin_update(self, number: int) -> None:
        """Say whether this is an update of the policy too."""
        self.updates_policy = (number + 1) % self.policy_update_interval == 0

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Both critics' temporal-difference error; at times the policy's value, scaled, and its imitation."""
        q = self.critic(batch.observation, batch.goal_embedding, batch.action).squeeze(-1)
        losses = {"critic_loss": (q - self._target(batch)).square().sum(0)}
        self.measure("q_mean", q.mean(0))
        if self.updates_policy:
            action = self.act(batch.observation, batch.goal_embedding)
            first_critic = self.critic.given(batch.observation, batch.goal_embedding, frozen=True, num_members=1)
            value = first_critic(action, frozen=True)[0].squeeze(-1)
            losses["policy_loss"] = -self._scale(value) * value
            losses["imitation_loss"] = squared_action_error(action, batch.action)
        return losses

    def act(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The policy's action."""
        return torch.tanh(self.policy(observation, goal_embedding))

    @torch.no_grad()
    def _target(self, batch: TransitionBatch) -> Tensor:
        """What the lower target critic says of the target policy's action, blurred by noise; shape (B,)."""
        noise = self.target_noise * batch.noise[:, : self.noise_size]
        action = torch.tanh(self.target_policy(batch.next_observation, batch.goal_embedding))
        blurred = (action + noise.clamp(-self.max_target_noise, self.max_target_noise)).clamp(-1, 1)
        next_q = self.target_critic(batch.next_observation, batch.goal_embedding, blurred).squeeze(-1)
        return td_target(batch.reward, self.discount, next_q.amin(0), batch.terminated)

    def _scale(self, value: Tensor) -> Tensor:
        """The value's weight over its mean size in this minibatch, as a constant, shape ()."""
        return self.value_weight / value.detach().abs().mean()
