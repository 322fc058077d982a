"""The first layer of a network over several inputs, whose products are made once and used as often as needed.

Observation and goal embedding are long, so most of a small network's work on them is its first layer. Inputs may
broadcast, and an input may be given as its ``Product``: many actions of one transition, or the observation and the
next observation under one goal, then share the costly part.

Shape letters: H width of the layer; of all members together in products for an ensemble.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Product:
    """Some neighbouring inputs of a network, multiplied by their columns of its first layer.

    Attributes:
        values: Shape (..., H); with the bias if the network's first input is among them, else without.
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


def product(inputs: Sequence[Tensor], first: int, weight: Tensor, bias: Tensor, sizes: Sequence[int]) -> Product:
    """Multiply neighbouring inputs, of equal leading dimensions, by their columns.

    Args:
        inputs: Shapes (..., n).
        first: Position of the first of them among the network's inputs.
        weight: The layer's matrix, shape (H, sum of ``sizes``).
        bias: Shape (H,).
        sizes: Size of every input of the network.
    """
    joined = Joined(torch.cat(list(inputs), dim=-1), sum(sizes[:first]))
    return Product(_multiply(joined, weight, bias), len(inputs))


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


def of_members(parts: Sequence[Joined | Product], num_members: int, width: int) -> list[Sequence[Joined | Product]]:
    """What each member of an ensemble gets: the inputs that all share, and its own part of products for several.

    Args:
        parts: What ``join`` made of the inputs; products of shape (..., members * H), for ``num_members`` or more.
        num_members: How many to prepare for.
        width: Width of each member's layer, H.
    """
    of_part = [
        [Product(values, part.num_inputs) for values in part.values.split(width, dim=-1)[:num_members]]
        if isinstance(part, Product)
        else [part] * num_members
        for part in parts
    ]
    return list(zip(*of_part, strict=True))


def first_layer(parts: Sequence[Joined | Product], weight: Tensor, bias: Tensor) -> Tensor:
    """The layer's output after its ReLU, the leading dimensions made one.

    Args:
        parts: What ``join`` made of the inputs; leading dimensions broadcast.
        weight: The layer's matrix, shape (H, inputs).
        bias: Shape (H,).

    Returns:
        Shape (rows, H).
    """
    first, *others = parts
    if not others and isinstance(first, Joined):
        flat = replace(first, values=first.values.reshape(-1, first.values.shape[-1]))
        return torch.relu_(_multiply(flat, weight, bias))
    total = first.values if isinstance(first, Product) else _multiply(first, weight, bias)
    for part in others:
        total = total + (part.values if isinstance(part, Product) else _multiply(part, weight, bias))
    # In place saves a pass over memory, but a product may be used again, and autograd copies what is a view of another.
    return (torch.relu_(total) if others else torch.relu(total)).reshape(-1, total.shape[-1])


def leading_shape(parts: Sequence[Joined | Product]) -> torch.Size:
    """What the leading dimensions broadcast to."""
    return torch.broadcast_shapes(*(part.values.shape[:-1] for part in parts))


def in_pieces(parts: Sequence[Joined | Product], max_rows: int) -> list[Sequence[Joined | Product]]:
    """Split inputs along their first dimension, so that a piece has about ``max_rows`` rows or fewer."""
    leading = leading_shape(parts)
    num_pieces = min(-(-leading.numel() // max_rows), leading[0]) if leading else 1
    if num_pieces == 1:
        return [parts]
    pieces = [
        [replace(part, values=values) for values in part.values.chunk(num_pieces)]
        if part.values.ndim == len(leading) + 1 and part.values.shape[0] == leading[0]
        else [part] * num_pieces
        for part in parts
    ]
    return list(zip(*pieces, strict=False))  # chunks may be fewer than asked for, and alike in number


def _multiply(part: Joined, weight: Tensor, bias: Tensor) -> Tensor:
    """The part's columns of the layer; the first part brings the bias along."""
    num_columns = part.values.shape[-1]
    # A slice, even of everything, costs a pass over zeros and a copy backwards.
    columns = weight if num_columns == weight.shape[-1] else weight.narrow(-1, part.first_column, num_columns)
    return functional.linear(part.values, columns, bias if part.first_column == 0 else None)
