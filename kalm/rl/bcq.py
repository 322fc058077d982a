"""Batch-constrained Q-learning: learn values as Q-learning does, but choose among actions that the data might hold.

Papers: Fujimoto et al. 2019a (arXiv:1812.02900) for continuous actions, Fujimoto et al. 2019b (arXiv:1910.01708) for
discrete ones. The action space decides.

Equation -> function, continuous (algorithm 1 of 2019a): autoencoder -> ``squared_action_error`` and
``standard_normal_divergence``; target y, the soft minimum over critics and the maximum over sampled actions ->
``_next_value``, ``td_target``; perturbation phi, the deterministic policy gradient -> ``policy_loss``.
Discrete (algorithm 1 of 2019b): actions likely enough, relative to the likeliest -> ``_constrained``; double
Q-learning with Huber's loss -> ``td_target``, ``huber_td_loss``; behaviour model -> ``imitation_loss``.

Differences from the papers: 1. the networks have KALM's two layers of 256, not 400-300 and 750-750, nor convolutions;
2. all networks take one step together, where the authors update autoencoder, critics and perturbation in turn; 3. to
act, the codes that are decoded are drawn once and for all, so that the policy is a function of what it sees; 4. the
defaults that both papers set (step size, target updates) are the continuous one's, see ``Args``.

``torchrl.objectives`` has no BCQ.

Shape letters: B batch, O observation, E goal embedding, A action or actions, N critics, M sampled actions, D code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kalm.core.errors import require
from kalm.core.specs import Spec
from kalm.rl.base import OfflineRLModule
from kalm.rl.losses import (
    huber_td_loss,
    imitation_loss,
    squared_action_error,
    standard_normal_divergence,
    td_target,
    value_of_action,
)
from kalm.rl.networks.mlp import critic_network, goal_conditioned_mlp
from kalm.rl.training.batches import TransitionBatch

_LOG_DEVIATION_RANGE = (-4.0, 15.0)  # the authors' code
_MAX_CODE = 0.5  # where decoded codes are cut, so that decoded actions stay near those most often recorded


class BCQ(OfflineRLModule):
    """Batch-constrained Q-learning, discrete or continuous as the domain's actions are."""

    critic: nn.Module
    acting_noise: Tensor

    def __init__(
        self,
        spec: Spec,
        probability_threshold: float = 0.3,
        logit_penalty_weight: float = 0.01,
        max_perturbation: float = 0.05,
        num_sampled_actions: int = 10,
        lower_value_weight: float = 0.75,
        divergence_weight: float = 0.5,
        learning_rate: float = 1e-3,
        **options: Any,
    ) -> None:
        """Build critics and the model of the data's actions.

        Args:
            spec: Sizes of observation, action and goal embedding; the command line takes them from the data.
            probability_threshold: Discrete: how likely an action must be, as a part of the likeliest one's probability,
                to be chosen, in [0, 1) (paper: 0.3, its tau). At 0 it is Q-learning, near 1 behaviour cloning.
            logit_penalty_weight: Discrete: weight of the mean square of the behaviour model's logits (authors' code:
                0.01).
            max_perturbation: Continuous: most that the policy moves a component of a sampled action, in [0, 1]
                (paper: 0.05, its Phi).
            num_sampled_actions: Continuous: actions that are sampled, M, and the best of them taken (paper: 10).
            lower_value_weight: Continuous: weight of the lower critic in the target, in [0, 1]; the higher one has
                the rest (paper: 0.75).
            divergence_weight: Continuous: weight of the divergence of the autoencoder's codes (paper: one over twice
                their number of components, which, for the mean over components, is 0.5).
            learning_rate: Adam's step size for every network (continuous paper: 1e-3 at batch 100; discrete paper:
                6.25e-5 at batch 32, with a target that is copied whole every 8000 updates: ``target_update_rate`` 1,
                ``target_update_interval`` 8000).
            options: Options that all algorithms share.
        """
        super().__init__(spec, learning_rate=learning_rate, **options)
        require(0 <= probability_threshold < 1, "probability_threshold", probability_threshold, "in [0, 1)")
        require(logit_penalty_weight >= 0, "logit_penalty_weight", logit_penalty_weight, "0 or more")
        require(0 <= max_perturbation <= 1, "max_perturbation", max_perturbation, "in [0, 1]")
        require(num_sampled_actions >= 1, "num_sampled_actions", num_sampled_actions, "1 or more")
        require(0 <= lower_value_weight <= 1, "lower_value_weight", lower_value_weight, "in [0, 1]")
        require(divergence_weight >= 0, "divergence_weight", divergence_weight, "0 or more")
        self.probability_threshold, self.logit_penalty_weight = probability_threshold, logit_penalty_weight
        self.max_perturbation, self.num_sampled_actions = max_perturbation, num_sampled_actions
        self.lower_value_weight, self.divergence_weight = lower_value_weight, divergence_weight
        if spec.is_discrete:
            self._build_discrete()
        else:
            self._build_continuous()

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """The losses of the paper that the action space calls for."""
        return self._discrete_losses(batch) if self.spec.is_discrete else self._continuous_losses(batch)

    def act(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The action of the greatest value among those that the data might hold."""
        if self.spec.is_discrete:
            q, logits = self.critic(observation, goal_embedding), self.behavior(observation, goal_embedding)
            return self.choose(self._constrained(q, logits))
        inputs = observation.unsqueeze(1), goal_embedding.unsqueeze(1)
        action = self._perturbed(self.perturbation, *inputs, self.autoencoder.sample(*inputs, self.acting_noise))
        best = self.critic(*inputs, action, num_members=1)[0].argmax(dim=1, keepdim=True)  # shape (B, 1, 1)
        return action.take_along_dim(best, dim=1).squeeze(1)

    # --- discrete actions --------------------------------------------------------------------------------------------

    def _build_discrete(self) -> None:
        self.critic = goal_conditioned_mlp(self.spec, self.hidden_sizes, self.spec.action_size)
        self.target_critic = self.target_of(self.critic)
        self.behavior = goal_conditioned_mlp(self.spec, self.hidden_sizes, self.spec.action_size)

    def _discrete_losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """The temporal-difference error, the behaviour model's imitation and the penalty on its logits."""
        value = value_of_action(self.critic(batch.observation, batch.goal_embedding), batch.action)
        logits = self.behavior(batch.observation, batch.goal_embedding)
        with torch.no_grad():
            next_action = self.act(batch.next_observation, batch.goal_embedding)
            next_q = self.target_critic(batch.next_observation, batch.goal_embedding)
            target = td_target(batch.reward, self.discount, value_of_action(next_q, next_action), batch.terminated)
        self.measure("q_mean", value)
        return {
            "td_loss": huber_td_loss(value, target),
            "imitation_loss": imitation_loss(functional.log_softmax(logits, dim=-1), batch.action),
            "logit_loss": self.logit_penalty_weight * logits.square().mean(-1),
        }

    def _constrained(self, q: Tensor, logits: Tensor) -> Tensor:
        """Q with minus infinity for actions that the data are too unlikely to hold, shape (B, A)."""
        relative_probability = (logits - logits.amax(dim=-1, keepdim=True)).exp()
        return torch.where(relative_probability > self.probability_threshold, q, -torch.inf)

    # --- continuous actions ------------------------------------------------------------------------------------------

    def _build_continuous(self) -> None:
        size = self.spec.action_size
        self.autoencoder = _ActionAutoencoder(self.spec, self.hidden_sizes)
        self.critic = critic_network(self.spec, self.hidden_sizes)
        self.target_critic = self.target_of(self.critic)
        self.perturbation = goal_conditioned_mlp(self.spec, self.hidden_sizes, size, size)
        self.target_perturbation = self.target_of(self.perturbation)
        code_size = self.autoencoder.code_size
        self.noise_size = code_size * (2 + self.num_sampled_actions)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.num_sampled_actions, code_size, generator=generator)
        self.register_buffer("acting_noise", noise, persistent=False)

    def _continuous_losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """The autoencoder's two losses, both critics' temporal-difference error, the perturbation's value."""
        inputs = batch.observation, batch.goal_embedding
        noise = batch.noise[:, : self.noise_size].unflatten(-1, (-1, self.autoencoder.code_size))
        mean, log_deviation = self.autoencoder.encode(*inputs, batch.action)
        reconstruction = self.autoencoder.decode(*inputs, mean + log_deviation.exp() * noise[:, 0])
        q = self.critic(*inputs, batch.action).squeeze(-1)
        with torch.no_grad():
            target = td_target(batch.reward, self.discount, self._next_value(batch, noise[:, 2:]), batch.terminated)
            sampled = self.autoencoder.sample(*inputs, noise[:, 1])
        improved = self._perturbed(self.perturbation, *inputs, sampled)
        self.measure("q_mean", q.mean(0))
        return {
            "reconstruction_loss": squared_action_error(reconstruction, batch.action),
            "divergence_loss": self.divergence_weight * standard_normal_divergence(mean, log_deviation),
            "critic_loss": (q - target).square().sum(0),
            "policy_loss": -self.critic(*inputs, improved, frozen=True, num_members=1)[0].squeeze(-1),
        }

    def _next_value(self, batch: TransitionBatch, noise: Tensor) -> Tensor:
        """Value of the best of M actions that the data might hold at the next observation, shape (B,).

        A value is a soft minimum: a convex combination of the lowest and the highest critic.
        """
        inputs = batch.next_observation.unsqueeze(1), batch.goal_embedding.unsqueeze(1)
        action = self._perturbed(self.target_perturbation, *inputs, self.autoencoder.sample(*inputs, noise))
        q = self.target_critic(*inputs, action).squeeze(-1)
        soft_minimum = self.lower_value_weight * q.amin(0) + (1 - self.lower_value_weight) * q.amax(0)
        return soft_minimum.amax(dim=-1)

    def _perturbed(
        self, perturbation: nn.Module, observation: Tensor, goal_embedding: Tensor, action: Tensor
    ) -> Tensor:
        """An action, moved a little towards a greater value, in [-1, 1]."""
        change = self.max_perturbation * torch.tanh(perturbation(observation, goal_embedding, action))
        return (action + change).clamp(-1, 1)


class _ActionAutoencoder(nn.Module):
    """A model of which actions the data hold at an observation: a conditional variational autoencoder.

    Encoder: observation, goal and action to a normal distribution of codes. Decoder: observation, goal and a code to an
    action like those recorded there. Architecture and bounds are the authors', who took them from Sohn et al. 2015.
    """

    def __init__(self, spec: Spec, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.code_size = 2 * spec.action_size
        self.encoder = goal_conditioned_mlp(spec, hidden_sizes, 2 * self.code_size, spec.action_size)
        self.decoder = goal_conditioned_mlp(spec, hidden_sizes, spec.action_size, self.code_size)

    def encode(self, observation: Tensor, goal_embedding: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the deviation of an action's codes, each of shape (..., D)."""
        mean, log_deviation = self.encoder(observation, goal_embedding, action).chunk(2, dim=-1)
        return mean, log_deviation.clamp(*_LOG_DEVIATION_RANGE)

    def decode(self, observation: Tensor, goal_embedding: Tensor, code: Tensor) -> Tensor:
        """The action of a code, shape (..., A), in [-1, 1]; leading dimensions broadcast."""
        return torch.tanh(self.decoder(observation, goal_embedding, code))

    def sample(self, observation: Tensor, goal_embedding: Tensor, noise: Tensor) -> Tensor:
        """Actions that the data might hold, (..., A), by standard normal numbers, (..., D), which are cut to a code."""
        return self.decode(observation, goal_embedding, noise.clamp(-_MAX_CODE, _MAX_CODE))
