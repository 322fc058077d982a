"""The networks of the policies: perceptrons over an observation, the embedding of an instruction and more.

KALM, appendix: [|S| + |L|, 256, 256] with ReLU. Observation and goal embedding are long, so most of a small network's
work on them is its first layer. Inputs stay apart until there, so that they may broadcast, and an ensemble can be given
its first inputs ahead of the others: thirty actions of one transition then share the costly part.

A network used as ``frozen`` passes gradients on to its inputs and takes none itself, for losses that look through a
critic they must not train.

Shape letters: B batch, N members of an ensemble, H hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from kalm.core.specs import GridObservation, Spec
from kalm.rl.networks.grid_encoder import GridEncoder, OnGrid
from kalm.rl.networks.token_network import OnTokens, TokenEncoder

_Layer = tuple[Tensor, Tensor]  # weight (outputs, inputs), bias (outputs,)
_ROWS_A_PIECE = 2048


class MLP(nn.Module):
    """Linear layers with ReLU between them over the concatenation of its inputs."""

    def __init__(self, input_sizes: Sequence[int], hidden_sizes: Sequence[int], output_size: int) -> None:
        """Initialise the layers as torch does by default."""
        super().__init__()
        self.input_sizes = list(input_sizes)
        sizes = [sum(input_sizes), *hidden_sizes]
        self.hidden = nn.ModuleList(nn.Linear(n, m) for n, m in zip(sizes[:-1], sizes[1:], strict=True))
        self.output = nn.Linear(sizes[-1], output_size)

    def forward(self, *inputs: Tensor, frozen: bool = False) -> Tensor:
        """Map inputs (..., n_1), (..., n_2), ..., which broadcast, to an output of shape (..., output_size)."""
        return _evaluate(_join(inputs, self.input_sizes), self._layers(frozen))

    def _layers(self, frozen: bool) -> list[_Layer]:
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
        """Initialise every member as ``MLP`` is."""
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
        """Map inputs (..., n_1), (..., n_2), ..., which broadcast, to an output of shape (N, ..., output_size).

        Only the first ``num_members`` are asked; None asks all.
        """
        parts = _join(inputs, self.input_sizes)
        return torch.stack([_evaluate(parts, layers) for layers in self.layers(frozen)[:num_members]])

    def each(self, *inputs: Tensor) -> Tensor:
        """Let every member read inputs of its own: (N, ..., n_1), (N, ..., n_2), ... to (N, ..., output_size)."""
        members = zip(zip(*inputs, strict=True), self.layers(), strict=True)
        return torch.stack([_evaluate(_join(own, self.input_sizes), layers) for own, layers in members])

    def given(self, *inputs: Tensor, frozen: bool = False, num_members: int | None = None) -> GivenInputs:
        """The members as functions of their last inputs, the work on the first ones being done once.

        ``inputs`` are the first ones, of equal leading dimensions; if ``frozen``, the parameters take no gradient from
        what is worked out here. Only the first ``num_members`` are asked; None asks all.
        """
        num_rows = None if num_members is None else num_members * self.biases[0].shape[-1]
        weight, bias = self.first_weight[:num_rows], self.biases[0].flatten()[:num_rows]
        (joined,) = _join(inputs, self.input_sizes)
        product = _product(joined, weight.detach() if frozen else weight, bias.detach() if frozen else bias)
        return GivenInputs(self, product, len(inputs))

    def layers(self, frozen: bool = False) -> list[list[_Layer]]:
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
    """An ensemble that knows its first inputs: ``critic.given(observation, goal)(action)``."""

    network: EnsembleMLP
    product: Tensor  # what its first layer makes of them, for each member that is asked, (..., members * H)
    num_inputs: int  # how many they are

    def __getitem__(self, rows: slice) -> GivenInputs:
        """The same for some rows of the inputs."""
        return replace(self, product=self.product[rows])

    def __call__(self, *inputs: Tensor, frozen: bool = False) -> Tensor:
        """Map the other inputs, (B, n), or several for each that is known, (B, M, n), to (N, ..., output_size)."""
        product = self.product.detach() if frozen else self.product
        if inputs and inputs[0].ndim > product.ndim:
            product = product.unsqueeze(-2)
        of_members = product.split(self.network.biases[0].shape[-1], dim=-1)
        others = _join(inputs, self.network.input_sizes, first=self.num_inputs)
        members = zip(of_members, self.network.layers(frozen)[: len(of_members)], strict=True)
        return torch.stack([_evaluate([_Part(own, None), *others], layers) for own, layers in members])


def goal_conditioned_mlp(spec: Spec, hidden_sizes: Sequence[int], output_size: int, *other_sizes: int) -> Any:
    """A perceptron over observation, goal embedding and other inputs: a policy, a value, or Q-values of actions.

    Before it stands what reads grids, where observations are such, or tokens, where goal embeddings consist of them.
    """
    if spec.num_goal_tokens:
        tokens = TokenEncoder(spec, hidden_sizes)
        return OnTokens(tokens, MLP([tokens.output_size, *other_sizes], hidden_sizes[-1:], output_size))
    if isinstance(spec.observation, GridObservation):
        encoder = GridEncoder(spec)
        return OnGrid(encoder, MLP([encoder.output_size, spec.goal_embedding_size], hidden_sizes, output_size))
    return MLP([spec.observation_size, spec.goal_embedding_size, *other_sizes], hidden_sizes, output_size)


def goal_conditioned_ensemble(
    num_members: int, spec: Spec, hidden_sizes: Sequence[int], output_size: int, *other_sizes: int
) -> Any:
    """Perceptrons over observation, goal embedding and other inputs; they share what reads grids or tokens."""
    if spec.num_goal_tokens:
        tokens = TokenEncoder(spec, hidden_sizes)
        sizes = [tokens.output_size, *other_sizes]
        return OnTokens(tokens, EnsembleMLP(num_members, sizes, hidden_sizes[-1:], output_size))
    if isinstance(spec.observation, GridObservation) and not other_sizes:
        encoder = GridEncoder(spec)
        sizes = [encoder.output_size, spec.goal_embedding_size]
        return OnGrid(encoder, EnsembleMLP(num_members, sizes, hidden_sizes, output_size))
    sizes = [spec.observation_size, spec.goal_embedding_size, *other_sizes]
    return EnsembleMLP(num_members, sizes, hidden_sizes, output_size)


def critic_network(spec: Spec, hidden_sizes: Sequence[int]) -> Any:
    """Two critics: Q-values of all discrete actions, (N, ..., A), or of the continuous action given, (N, ..., 1).

    Critics of continuous actions take the inputs observation, goal embedding, action.
    """
    if spec.is_discrete:
        return goal_conditioned_ensemble(2, spec, hidden_sizes, spec.action_size)
    return goal_conditioned_ensemble(2, spec, hidden_sizes, 1, spec.action_size)


# --- evaluation: products of the first layer are summed, in pieces that keep to the processor's cache ----------------


@dataclass(frozen=True)
class _Part:
    """Neighbouring inputs in one tensor, (..., n), and the column of the first layer that meets the first number.

    Without a column they are multiplied already, (..., H), and the bias is in them.
    """

    values: Tensor
    first_column: int | None


def _join(inputs: Sequence[Tensor], sizes: Sequence[int], first: int = 0) -> list[_Part]:
    """Put neighbours of equal leading dimensions together, each of which then takes one product.

    ``sizes`` are those of all inputs of the network, ``first`` is the position of the first given among them.
    """
    runs: list[tuple[int, list[Tensor]]] = []
    for position, part in enumerate(inputs, start=first):
        if runs and runs[-1][1][-1].shape[:-1] == part.shape[:-1]:
            runs[-1][1].append(part)
        else:
            runs.append((position, [part]))
    return [_Part(torch.cat(run, dim=-1), sum(sizes[:position])) for position, run in runs]


def _product(part: _Part, weight: Tensor, bias: Tensor) -> Tensor:
    """A part by its columns of the first layer, shape (..., H); the first inputs bring the bias along."""
    if part.first_column is None:
        return part.values
    num_columns = part.values.shape[-1]
    # A slice, even of everything, costs a pass over zeros and a copy backwards.
    columns = weight if num_columns == weight.shape[-1] else weight.narrow(-1, part.first_column, num_columns)
    return functional.linear(part.values, columns, bias if part.first_column == 0 else None)


def _evaluate(parts: Sequence[_Part], layers: Sequence[_Layer]) -> Tensor:
    """Linear layers with ReLU between them, as many rows at a time as keep to the processor's cache."""
    leading = torch.broadcast_shapes(*(part.values.shape[:-1] for part in parts))
    pieces = _in_pieces(parts, leading) if parts[0].values.device.type == "cpu" else [parts]
    rows = [_evaluate_piece(piece, layers) for piece in pieces]
    output = rows[0] if len(rows) == 1 else torch.cat(rows)
    return output.view(*leading, output.shape[-1])


def _in_pieces(parts: Sequence[_Part], leading: torch.Size) -> list[Sequence[_Part]]:
    """Split along the first of the dimensions that parts broadcast to."""
    num_pieces = min(-(-leading.numel() // _ROWS_A_PIECE), leading[0]) if leading else 1
    if num_pieces == 1:
        return [parts]
    pieces = [
        [replace(part, values=values) for values in part.values.chunk(num_pieces)]
        if part.values.ndim == len(leading) + 1 and part.values.shape[0] == leading[0]
        else [part] * num_pieces
        for part in parts
    ]
    return list(zip(*pieces, strict=False))  # chunks may be fewer than asked for, and alike in number


def _evaluate_piece(parts: Sequence[_Part], layers: Sequence[_Layer]) -> Tensor:
    first, *hidden_layers, last = layers
    hidden = _first_layer(parts, *first)
    for layer in hidden_layers:
        hidden = torch.relu_(functional.linear(hidden, *layer))
    return functional.linear(hidden, *last)


def _first_layer(parts: Sequence[_Part], weight: Tensor, bias: Tensor) -> Tensor:
    """The first layer's output after its ReLU, the leading dimensions made one: shape (rows, H)."""
    first, *others = parts
    if not others and first.first_column is not None:
        flat = replace(first, values=first.values.reshape(-1, first.values.shape[-1]))
        return torch.relu_(_product(flat, weight, bias))
    total = _product(first, weight, bias)
    for part in others:
        total = total + _product(part, weight, bias)
    # In place saves a pass over memory, but a product may be used again, and autograd copies what is a view of another.
    return (torch.relu_(total) if others else torch.relu(total)).reshape(-1, total.shape[-1])
