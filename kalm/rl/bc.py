"""Behaviour cloning: do what the data did. No reward is read, so imagined rollouts count as much as real ones.

Paper: the BC of KALM (arXiv:2404.09248, section 5), which is d3rlpy's.

Equation -> function: negative log-likelihood -> ``imitation_loss``; squared log-probabilities ->
``log_probability_penalty``; squared error of a continuous action -> ``squared_action_error``.

Differences from the paper: none known. Its "imitation weight 0.5" is d3rlpy's ``beta`` of discrete BC, which weighs
the mean squared log-probability; continuous BC has no such term there, and none here.

``torchrl.objectives.BCLoss`` holds the first of the three terms alone, behind a TensorDict module, so it is not used.

Shape letters: B batch, O observation, E goal embedding, A action.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kalm.core.errors import require
from kalm.core.specs import Spec
from kalm.rl.base import OfflineRLModule
from kalm.rl.losses import imitation_loss, log_probability_penalty, squared_action_error
from kalm.rl.networks.mlp import goal_conditioned_mlp
from kalm.rl.training.batches import TransitionBatch


class BC(OfflineRLModule):
    """Behaviour cloning, discrete or continuous as the domain's actions are."""

    def __init__(self, spec: Spec, imitation_weight: float = 0.5, learning_rate: float = 1e-3, **options: Any) -> None:
        """Build the policy.

        Args:
            spec: Sizes of observation, action and goal embedding; the command line takes them from the data.
            imitation_weight: Weight of the penalty on certainty, discrete actions only (paper: 0.5).
            learning_rate: Adam's step size (paper: 1e-3, at batch 100).
            options: Options that all algorithms share.
        """
        super().__init__(spec, learning_rate=learning_rate, **options)
        require(imitation_weight >= 0, "imitation_weight", imitation_weight, "0 or more")
        self.imitation_weight = imitation_weight
        self.policy = goal_conditioned_mlp(spec, self.hidden_sizes, spec.action_size)

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Imitation and, for discrete actions, the weighted penalty on certainty."""
        output = self.policy(batch.observation, batch.goal_embedding)
        if not self.spec.is_discrete:
            return {"imitation_loss": squared_action_error(torch.tanh(output), batch.action)}
        log_probability = functional.log_softmax(output, dim=-1)
        return {
            "imitation_loss": imitation_loss(log_probability, batch.action),
            "certainty_loss": self.imitation_weight * log_probability_penalty(log_probability),
        }

    def act(self, observation: Tensor, goal_embedding: Tensor) -> Tensor:
        """The likeliest action, or the mean of a continuous one."""
        output = self.policy(observation, goal_embedding)
        return self.choose(output) if self.spec.is_discrete else torch.tanh(output)
