"""The networks of the policies: perceptrons over an observation, the embedding of an instruction and more.

KALM, appendix: [|S| + |L|, 256, 256] with ReLU. The inputs stay apart until the first layer. There they may broadcast:
thirty actions of one transition share the products of its observation and of its goal embedding, the two largest.

A network used as ``frozen`` passes gradients on to its inputs and takes none itself, for losses that look through a
critic they must not train.

Shape letters: B batch, N members of an ensemble, H hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kalm.types import TaskSpec


class MLP(nn.Module):
    """Linear layers with ReLU between them over the concatenation of its inputs."""

    def __init__(self, input_sizes: Sequence[int], hidden_sizes: Sequence[int], output_size: int) -> None:
        """Initialise the layers as torch does by default.

        Args:
            input_sizes: Size of each input.
            hidden_sizes: Width of each hidden layer.
            output_size: Width of the linear output.
        """
        super().__init__()
        self.input_sizes = list(input_sizes)
        sizes = [sum(input_sizes), *hidden_sizes]
        self.hidden = nn.ModuleList(nn.Linear(n, m) for n, m in zip(sizes[:-1], sizes[1:], strict=True))
        self.output = nn.Linear(sizes[-1], output_size)

    def forward(self, *inputs: Tensor, frozen: bool = False) -> Tensor:
        """Map inputs of shape (..., n_1), (..., n_2), ... to an output of shape (..., output_size).

        Args:
            inputs: Leading dimensions broadcast.
            frozen: Whether the parameters take no gradient.
        """
        first, *layers = [*self.hidden, self.output]
        weight, bias = _parameters(first, frozen)
        hidden = _first_layer(inputs, weight, bias, self.input_sizes)
        for layer in layers:
            weight, bias = _parameters(layer, frozen)
            hidden = functional.linear(functional.relu(hidden), weight, bias)
        return hidden


class EnsembleMLP(nn.Module):
    """N independent perceptrons of one shape, evaluated as one batched product; an ensemble of critics."""

    def __init__(
        self, num_members: int, input_sizes: Sequence[int], hidden_sizes: Sequence[int], output_size: int
    ) -> None:
        """Initialise every member as ``MLP`` is.

        Args:
            num_members: Members, N.
            input_sizes: Size of each input.
            hidden_sizes: Width of each hidden layer.
            output_size: Width of the linear output.
        """
        super().__init__()
        self.num_members, self.input_sizes = num_members, list(input_sizes)
        sizes = [sum(input_sizes), *hidden_sizes, output_size]
        layers = list(zip(sizes[:-1], sizes[1:], strict=True))
        # The first layer's weight is (N * H, inputs): members read the same inputs, so one product serves them all.
        self.first_weight = nn.Parameter(torch.empty(num_members * layers[0][1], layers[0][0]))
        self.weights = nn.ParameterList(torch.empty(num_members, n, m) for n, m in layers[1:])
        self.biases = nn.ParameterList(torch.empty(num_members, 1, m) for _, m in layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases uniformly within one over the root of a layer's inputs, as ``nn.Linear`` does."""
        fan_ins = [self.first_weight.shape[1], *(weight.shape[1] for weight in self.weights)]
        for fan_in, weight, bias in zip(fan_ins, [self.first_weight, *self.weights], self.biases, strict=True):
            bound = 1 / math.sqrt(fan_in)
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, *inputs: Tensor, frozen: bool = False) -> Tensor:
        """Map inputs of shape (..., n_1), (..., n_2), ... to an output of shape (N, ..., output_size).

        Args:
            inputs: Leading dimensions broadcast.
            frozen: Whether the parameters take no gradient.
        """
        first_weight, *weights = [w.detach() if frozen else w for w in (self.first_weight, *self.weights)]
        first_bias, *biases = [b.detach() if frozen else b for b in self.biases]
        joined = _first_layer(inputs, first_weight, first_bias.reshape(-1), self.input_sizes)
        leading = joined.shape[:-1]
        hidden = joined.reshape(-1, self.num_members, first_bias.shape[-1]).transpose(0, 1)
        for weight, bias in zip(weights, biases, strict=True):
            hidden = torch.baddbmm(bias, functional.relu(hidden), weight)
        return hidden.reshape(self.num_members, *leading, hidden.shape[-1])


def _parameters(layer: nn.Module, frozen: bool) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, nn.Linear)
    return (layer.weight.detach(), layer.bias.detach()) if frozen else (layer.weight, layer.bias)


def _first_layer(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor, sizes: Sequence[int]) -> Tensor:
    """One linear layer over inputs that may broadcast: (..., n_1), (..., n_2) -> (..., H)."""
    if len({tuple(part.shape[:-1]) for part in inputs}) == 1:
        return functional.linear(torch.cat(list(inputs), dim=-1), weight, bias)
    products = [functional.linear(part, columns) for part, columns in zip(inputs, weight.split(sizes, 1), strict=True)]
    smallest_first = sorted(products, key=torch.Tensor.numel)
    total = smallest_first[0] + bias
    for product in smallest_first[1:]:
        total = total + product
    return total


def policy_network(spec: TaskSpec, hidden_sizes: Sequence[int]) -> MLP:
    """Observation and goal embedding to one number an action: a logit if discrete, else a component before tanh."""
    return MLP([spec.observation_size, spec.goal_embedding_size], hidden_sizes, spec.action_size)


def gaussian_policy_network(spec: TaskSpec, hidden_sizes: Sequence[int]) -> MLP:
    """Observation and goal embedding to the mean and the logarithm of the deviation of each action component."""
    return MLP([spec.observation_size, spec.goal_embedding_size], hidden_sizes, 2 * spec.action_size)


def critic_network(spec: TaskSpec, hidden_sizes: Sequence[int], num_members: int = 2) -> EnsembleMLP:
    """N critics: Q-values of all discrete actions, (N, ..., A), or of the continuous action that is given, (N, ..., 1).

    Critics of continuous actions take the inputs observation, goal embedding, action.
    """
    inputs = [spec.observation_size, spec.goal_embedding_size]
    if spec.is_discrete:
        return EnsembleMLP(num_members, inputs, hidden_sizes, spec.action_size)
    return EnsembleMLP(num_members, [*inputs, spec.action_size], hidden_sizes, 1)


def discrete_critic_network(spec: TaskSpec, hidden_sizes: Sequence[int]) -> MLP:
    """Observation and goal embedding to the Q-value of each discrete action."""
    return MLP([spec.observation_size, spec.goal_embedding_size], hidden_sizes, spec.action_size)


def value_network(spec: TaskSpec, hidden_sizes: Sequence[int]) -> MLP:
    """Observation and goal embedding to the value of the observation, (..., 1)."""
    return MLP([spec.observation_size, spec.goal_embedding_size], hidden_sizes, 1)
