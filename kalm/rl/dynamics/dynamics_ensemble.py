"""A model of the world, learned from transitions: what an action changes, what it earns, and whether the task ends.

Each member of the ensemble is a network that says how far the observation moves and what the reward is, both as normal
distributions, and how likely the task is to end; members differ by their first weights. Chua et al. 2018
(arXiv:1805.12114), Janner et al. 2019 (arXiv:1906.08253).

Shape letters: B batch, N members, O observation, E goal embedding, A action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kalm.core.specs import TaskSpec
from kalm.rl.losses import gaussian_log_probability
from kalm.rl.networks.gaussian_policies import softly_bounded
from kalm.rl.networks.mlp import EnsembleMLP
from kalm.rl.training.batches import TransitionBatch

_LOG_DEVIATION_RANGE = (-5.0, 5.0)


@dataclass(frozen=True)
class ImaginedStep:
    """Where the model says that an action leads.

    Attributes:
        next_observation: Normalised, shape (B, O).
        reward: Shape (B,).
        termination: Probability that the task ended with the step, shape (B,).
    """

    next_observation: Tensor
    reward: Tensor
    termination: Tensor


class DynamicsEnsemble(nn.Module):
    """N models of the same transitions."""

    def __init__(self, spec: TaskSpec, num_members: int, hidden_sizes: Sequence[int]) -> None:
        """Build the members.

        Args:
            spec: Sizes of observation, action and goal embedding.
            num_members: Members, N.
            hidden_sizes: Width of each hidden layer of each.
        """
        super().__init__()
        self.num_outcomes = spec.observation_size + 1  # the change of the observation, and the reward
        inputs = [spec.observation_size, spec.goal_embedding_size, spec.action_size]
        self.members = EnsembleMLP(num_members, inputs, hidden_sizes, 2 * self.num_outcomes + 1)

    def losses(self, batch: TransitionBatch) -> tuple[Tensor, Tensor]:
        """How unlikely the members find what happened, and whether the task ended with it.

        Both are negative logarithms of probabilities, each summed over components and averaged over members; shape
        (B,), not reduced. The first may be negative, for it is one of a density.
        """
        output = self.members(batch.observation, batch.goal_embedding, batch.action)
        mean, log_deviation, logit = self._read(output)
        change = batch.next_observation - batch.observation
        outcome = torch.cat([change, batch.reward.unsqueeze(-1)], dim=-1)
        terminated = batch.terminated.to(logit.dtype).expand_as(logit)
        outcome_loss = -gaussian_log_probability(outcome, mean, log_deviation)
        termination_loss = functional.binary_cross_entropy_with_logits(logit, terminated, reduction="none")
        return outcome_loss.mean(0), termination_loss.mean(0)

    def step(self, observation: Tensor, goal_embedding: Tensor, action: Tensor, noise: Tensor) -> ImaginedStep:
        """Draw what follows; row i asks member i modulo N, so that all members together cost one.

        Args:
            observation: Normalised, shape (B, O).
            goal_embedding: Normalised, shape (B, E).
            action: Shape (B, A).
            noise: Standard normal numbers, shape (B, O + 1).
        """
        output = self._of_own_member(observation, goal_embedding, action)
        mean, log_deviation, logit = self._read(output)
        change, reward = (mean + log_deviation.exp() * noise).split([self.num_outcomes - 1, 1], dim=-1)
        return ImaginedStep(observation + change, reward.squeeze(-1), logit.sigmoid())

    def _of_own_member(self, *inputs: Tensor) -> Tensor:
        """The output of each row's member, shape (B, outputs)."""
        num_members, num_rows = self.members.num_members, len(inputs[0])
        padding = -num_rows % num_members
        of_member = [
            functional.pad(part, (0, 0, 0, padding)).unflatten(0, (-1, num_members)).transpose(0, 1) for part in inputs
        ]
        return self.members.each(*of_member).transpose(0, 1).flatten(0, 1)[:num_rows]

    def _read(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and logarithm of the deviation of the outcome, and the logit of termination."""
        mean, log_deviation, logit = output.split([self.num_outcomes, self.num_outcomes, 1], dim=-1)
        return mean, softly_bounded(log_deviation, *_LOG_DEVIATION_RANGE), logit.squeeze(-1)
