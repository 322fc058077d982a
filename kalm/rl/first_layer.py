"""The first layer of a network over several inputs, whose products are made once and used as often as needed.

Observation and goal embedding are long, so most of a small network's work on them is its first layer. Inputs may
broadcast, and an input may be given as its ``Product``: many actions of one transition, or the observation and the
next observation under one goal, then share the costly part.

Shape letters: H width of the layer; of all members together in products for an ensemble.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Product:
    """Some neighbouring inputs of a network, multiplied by their columns of its first layer.

    Attributes:
        values: Shape (..., H), without the bias.
        num_inputs: Inputs that it stands for.
    """

    values: Tensor
    num_inputs: int

    def detach(self) -> Product:
        """The same numbers, without a way back for gradients."""
        return Product(self.values.detach(), self.num_inputs)


@dataclass(frozen=True)
class Joined:
    """Neighbouring inputs of equal leading dimensions in one tensor.

    Attributes:
        values: Shape (..., n).
        first_column: Column of the layer's matrix that meets the first number.
    """

    values: Tensor
    first_column: int


def product(inputs: Sequence[Tensor], first: int, weight: Tensor, sizes: Sequence[int]) -> Product:
    """Multiply neighbouring inputs, of equal leading dimensions, by their columns.

    Args:
        inputs: Shapes (..., n).
        first: Position of the first of them among the network's inputs.
        weight: The layer's matrix, shape (H, sum of ``sizes``).
        sizes: Size of every input of the network.
    """
    return Product(_multiply(Joined(torch.cat(list(inputs), dim=-1), sum(sizes[:first])), weight), len(inputs))


def join(inputs: Sequence[Tensor | Product], sizes: Sequence[int]) -> list[Joined | Product]:
    """Put neighbouring inputs of equal leading dimensions together, so that each takes one product.

    Args:
        inputs: In the network's order, each as it is, (..., n), or as its product.
        sizes: Size of every input of the network.
    """
    runs: list[tuple[int, list[Tensor] | Product]] = []
    position = 0
    for part in inputs:
        last = runs[-1][1] if runs else None
        if isinstance(part, Product):
            runs.append((position, part))
        elif isinstance(last, list) and last[-1].shape[:-1] == part.shape[:-1]:
            last.append(part)
        else:
            runs.append((position, [part]))
        position += part.num_inputs if isinstance(part, Product) else 1
    return [
        run if isinstance(run, Product) else Joined(torch.cat(run, dim=-1), sum(sizes[:first])) for first, run in runs
    ]


def of_members(parts: Sequence[Joined | Product], num_members: int) -> list[Sequence[Joined | Product]]:
    """What each member of an ensemble gets: the inputs that all share, and its own part of products for all."""
    of_part = [
        [Product(values, part.num_inputs) for values in part.values.chunk(num_members, dim=-1)]
        if isinstance(part, Product)
        else [part] * num_members
        for part in parts
    ]
    return list(zip(*of_part, strict=True))


def first_layer(parts: Sequence[Joined | Product], weight: Tensor, bias: Tensor) -> Tensor:
    """The layer's output before its activation, in memory of its own.

    Args:
        parts: What ``join`` made of the inputs; leading dimensions broadcast.
        weight: The layer's matrix, shape (H, inputs).
        bias: Shape (H,).

    Returns:
        Shape (..., H).
    """
    only = parts[0]
    if len(parts) == 1 and isinstance(only, Joined):
        return functional.linear(only.values, weight, bias)
    products = [part.values if isinstance(part, Product) else _multiply(part, weight) for part in parts]
    smallest_first = sorted(products, key=torch.Tensor.numel)
    total = smallest_first[0] + bias
    for values in smallest_first[1:]:
        total = total + values
    return total


def _multiply(part: Joined, weight: Tensor) -> Tensor:
    columns = weight.narrow(-1, part.first_column, part.values.shape[-1])
    return functional.linear(part.values, columns)
