"""The networks of the policies: plain perceptrons over an observation and the embedding of an instruction.

KALM, appendix: [|S| + |L|, 256, 256] with ReLU. The observation and the goal embedding stay apart until the first
layer, so that the table of embeddings is gathered where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kalm.types import TaskSpec


class MLP(nn.Module):
    """Linear layers with ReLU between them over the concatenation of its inputs."""

    def __init__(self, input_size: int, hidden_sizes: Sequence[int], output_size: int) -> None:
        """Initialise the layers as torch does by default.

        Args:
            input_size: Sum of the sizes of all inputs.
            hidden_sizes: Width of each hidden layer.
            output_size: Width of the linear output.
        """
        super().__init__()
        sizes = [input_size, *hidden_sizes]
        self.hidden = nn.ModuleList(nn.Linear(n, m) for n, m in zip(sizes[:-1], sizes[1:], strict=True))
        self.output = nn.Linear(sizes[-1], output_size)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map inputs of shape (..., n_1), (..., n_2), ... to an output of shape (..., output_size)."""
        hidden = torch.cat(inputs, dim=-1)
        for layer in self.hidden:
            hidden = functional.relu(layer(hidden), inplace=True)
        return self.output(hidden)


def policy_network(spec: TaskSpec, hidden_sizes: Sequence[int]) -> MLP:
    """Observation and goal embedding to one number an action: a logit if discrete, else a component before tanh."""
    return MLP(spec.observation_size + spec.goal_embedding_size, hidden_sizes, spec.action_size)


def discrete_critic_network(spec: TaskSpec, hidden_sizes: Sequence[int]) -> MLP:
    """Observation and goal embedding to the Q-value of each discrete action."""
    return MLP(spec.observation_size + spec.goal_embedding_size, hidden_sizes, spec.action_size)
