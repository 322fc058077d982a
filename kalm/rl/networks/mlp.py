"""The networks of the policies: perceptrons over an observation, the embedding of an instruction and more.

KALM, appendix: [|S| + |L|, 256, 256] with ReLU. The inputs stay apart until the first layer, so that they may
broadcast there. An ensemble can be given its first inputs ahead of the others: thirty actions of one transition then
share the work on its observation and its goal embedding, the two largest; see ``first_layer.py``.

A network used as ``frozen`` passes gradients on to its inputs and takes none itself, for losses that look through a
critic they must not train.

Shape letters: B batch, N members of an ensemble, H hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kalm.core.specs import TaskSpec
from kalm.rl.networks.first_layer import Part, PartialProduct, first_layer, in_pieces, join, leading_shape, multiply

_Layer = tuple[Tensor, Tensor]  # weight (outputs, inputs), bias (outputs,)
_ROWS_A_PIECE = 2048


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
        return _evaluate(join(inputs, self.input_sizes), self._layers(frozen))

    def _layers(self, frozen: bool) -> list[_Layer]:
        """Weight and bias of every layer."""
        layers = [cast(nn.Linear, layer) for layer in (*self.hidden, self.output)]
        return [(one.weight.detach(), one.bias.detach()) if frozen else (one.weight, one.bias) for one in layers]


class EnsembleMLP(nn.Module):
    """N independent perceptrons of one shape, whose parameters lie in common tensors; an ensemble of critics.

    The members are evaluated one after the other: on a processor products of single matrices are faster than batched
    ones of few, above all backwards.
    """

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

    def forward(self, *inputs: Tensor, frozen: bool = False, num_members: int | None = None) -> Tensor:
        """Map inputs of shape (..., n_1), (..., n_2), ... to an output of shape (N, ..., output_size).

        Args:
            inputs: Leading dimensions broadcast.
            frozen: Whether the parameters take no gradient.
            num_members: Ask only the first members, so many; None asks all.
        """
        parts = join(inputs, self.input_sizes)
        return torch.stack([_evaluate(parts, layers) for layers in self.layers(frozen)[:num_members]])

    def each(self, *inputs: Tensor, frozen: bool = False) -> Tensor:
        """Let every member read inputs of its own: (N, ..., n_1), (N, ..., n_2), ... to (N, ..., output_size)."""
        members = zip(zip(*inputs, strict=True), self.layers(frozen), strict=True)
        return torch.stack([_evaluate(join(own, self.input_sizes), layers) for own, layers in members])

    def given(self, *inputs: Tensor, frozen: bool = False, num_members: int | None = None) -> GivenInputs:
        """The members as functions of their last inputs, the work on the first ones being done once.

        Args:
            inputs: The first inputs, of equal leading dimensions.
            frozen: Whether the parameters take no gradient from what is worked out here.
            num_members: Ask only the first members, so many; None asks all.
        """
        num_rows = None if num_members is None else num_members * self.biases[0].shape[-1]
        weight, bias = self.first_weight[:num_rows], self.biases[0].flatten()[:num_rows]
        (joined,) = join(inputs, self.input_sizes)
        product = multiply(joined, weight.detach() if frozen else weight, bias.detach() if frozen else bias)
        return GivenInputs(self, product, len(inputs))

    def layers(self, frozen: bool) -> list[list[_Layer]]:
        """Weight, (outputs, inputs), and bias of every layer of each member."""
        tensors = [self.first_weight, *self.weights, *self.biases]
        first, *others = [tensor.detach() for tensor in tensors] if frozen else tensors
        weights, biases = others[: len(self.weights)], others[len(self.weights) :]
        weights_of = [first.chunk(self.num_members), *(weight.transpose(1, 2).unbind() for weight in weights)]
        biases_of = [bias.squeeze(1).unbind() for bias in biases]
        return [
            list(zip(own_weights, own_biases, strict=True))
            for own_weights, own_biases in zip(zip(*weights_of, strict=True), zip(*biases_of, strict=True), strict=True)
        ]


@dataclass(frozen=True)
class GivenInputs:
    """An ensemble that knows its first inputs: ``critic.given(observation, goal)(action)``.

    Attributes:
        network: The ensemble.
        product: What its first layer makes of them, for each member that is asked, (..., members * H).
        num_inputs: How many they are.
    """

    network: EnsembleMLP
    product: Tensor
    num_inputs: int

    def __getitem__(self, rows: slice) -> GivenInputs:
        """The same for some rows of the inputs."""
        return replace(self, product=self.product[rows])

    def __call__(self, *inputs: Tensor, frozen: bool = False) -> Tensor:
        """Map the other inputs to outputs, (N, ..., output_size).

        Args:
            inputs: Of the leading dimensions of those that are known, (B, n), or with several for each, (B, M, n).
            frozen: Whether the parameters take no gradient.
        """
        product = self.product.detach() if frozen else self.product
        if inputs and inputs[0].ndim > product.ndim:
            product = product.unsqueeze(-2)
        of_members = product.split(self.network.biases[0].shape[-1], dim=-1)
        others = join(inputs, self.network.input_sizes, first=self.num_inputs)
        members = zip(of_members, self.network.layers(frozen)[: len(of_members)], strict=True)
        return torch.stack([_evaluate([PartialProduct(own), *others], layers) for own, layers in members])


def _evaluate(parts: Sequence[Part], layers: Sequence[_Layer]) -> Tensor:
    """Linear layers with ReLU between them, as many rows at a time as keep to the processor's cache."""
    pieces = in_pieces(parts, _ROWS_A_PIECE) if parts[0].values.device.type == "cpu" else [parts]
    rows = [_evaluate_piece(piece, layers) for piece in pieces]
    output = rows[0] if len(rows) == 1 else torch.cat(rows)
    return output.view(*leading_shape(parts), output.shape[-1])


def _evaluate_piece(parts: Sequence[Part], layers: Sequence[_Layer]) -> Tensor:
    first, *hidden_layers, last = layers
    hidden = first_layer(parts, *first)
    for layer in hidden_layers:
        hidden = torch.relu_(functional.linear(hidden, *layer))
    return functional.linear(hidden, *last)


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
