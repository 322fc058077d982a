"""A model of which actions the data hold at an observation: a conditional variational autoencoder.

Encoder: observation, goal and action to a normal distribution of codes. Decoder: observation, goal and a code to an
action like those recorded there. Architecture and bounds are those of the authors of BCQ (Fujimoto et al. 2019,
arXiv:1812.02900), who took them from Sohn et al. 2015.

Shape letters: B batch, O observation, E goal embedding, A action, D numbers in a code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kalm.core.specs import TaskSpec
from kalm.rl.networks.mlp import MLP

_LOG_DEVIATION_RANGE = (-4.0, 15.0)
_MAX_CODE = 0.5  # where decoded codes are cut, so that decoded actions stay near those most often recorded


class ActionAutoencoder(nn.Module):
    """Encodes and decodes continuous actions, given observation and goal."""

    def __init__(self, spec: TaskSpec, hidden_sizes: Sequence[int]) -> None:
        """Build encoder and decoder.

        Args:
            spec: Sizes of observation, action and goal embedding.
            hidden_sizes: Width of each hidden layer of both.
        """
        super().__init__()
        self.code_size = 2 * spec.action_size
        inputs = [spec.observation_size, spec.goal_embedding_size]
        self.encoder = MLP([*inputs, spec.action_size], hidden_sizes, 2 * self.code_size)
        self.decoder = MLP([*inputs, self.code_size], hidden_sizes, spec.action_size)

    def encode(self, observation: Tensor, goal_embedding: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the deviation of an action's codes, each of shape (..., D)."""
        mean, log_deviation = self.encoder(observation, goal_embedding, action).chunk(2, dim=-1)
        return mean, log_deviation.clamp(*_LOG_DEVIATION_RANGE)

    def decode(self, observation: Tensor, goal_embedding: Tensor, code: Tensor) -> Tensor:
        """The action of a code, shape (..., A), in [-1, 1]; leading dimensions broadcast."""
        return torch.tanh(self.decoder(observation, goal_embedding, code))

    def sample(self, observation: Tensor, goal_embedding: Tensor, noise: Tensor) -> Tensor:
        """Actions that the data might hold.

        Args:
            observation: Shape (..., O).
            goal_embedding: Shape (..., E).
            noise: Standard normal numbers, shape (..., D); the code is what is left of them after cutting.

        Returns:
            Shape (..., A); leading dimensions broadcast.
        """
        return self.decode(observation, goal_embedding, noise.clamp(-_MAX_CODE, _MAX_CODE))
