"""The first layer of a network over several inputs, whose products are made once and used as often as needed.

Observation and goal embedding are long, so most of a small network's work on them is its first layer. Inputs may
broadcast, and the first ones may be given as their ``PartialProduct``: many actions of one transition then share the
costly part.

Shape letters: H width of the layer; of all members together in products for an ensemble.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class PartialProduct:
    """A network's first inputs, multiplied by their columns of its first layer, with the bias; shape (..., H)."""

    values: Tensor


@dataclass(frozen=True)
class Joined:
    """Neighbouring inputs of equal leading dimensions in one tensor.

    Attributes:
        values: Shape (..., n).
        first_column: Column of the layer's matrix that meets the first number.
    """

    values: Tensor
    first_column: int


Part = Joined | PartialProduct


def join(inputs: Sequence[Tensor], sizes: Sequence[int], first: int = 0) -> list[Joined]:
    """Put neighbouring inputs of equal leading dimensions together, so that each takes one product.

    Args:
        inputs: In the network's order, shapes (..., n).
        sizes: Size of every input of the network.
        first: Position of the first of them among the network's inputs.
    """
    runs: list[tuple[int, list[Tensor]]] = []
    for position, part in enumerate(inputs, start=first):
        if runs and runs[-1][1][-1].shape[:-1] == part.shape[:-1]:
            runs[-1][1].append(part)
        else:
            runs.append((position, [part]))
    return [Joined(torch.cat(run, dim=-1), sum(sizes[:position])) for position, run in runs]


def multiply(part: Joined, weight: Tensor, bias: Tensor) -> Tensor:
    """Neighbouring inputs by their columns of the layer, shape (..., H); the first ones bring the bias along.

    Args:
        part: The inputs.
        weight: The layer's matrix, shape (H, inputs).
        bias: Shape (H,).
    """
    num_columns = part.values.shape[-1]
    # A slice, even of everything, costs a pass over zeros and a copy backwards.
    columns = weight if num_columns == weight.shape[-1] else weight.narrow(-1, part.first_column, num_columns)
    return functional.linear(part.values, columns, bias if part.first_column == 0 else None)


def first_layer(parts: Sequence[Part], weight: Tensor, bias: Tensor) -> Tensor:
    """The layer's output after its ReLU, the leading dimensions made one.

    Args:
        parts: Inputs in their order; leading dimensions broadcast.
        weight: The layer's matrix, shape (H, inputs).
        bias: Shape (H,).

    Returns:
        Shape (rows, H).
    """
    first, *others = parts
    if not others and isinstance(first, Joined):
        flat = replace(first, values=first.values.reshape(-1, first.values.shape[-1]))
        return torch.relu_(multiply(flat, weight, bias))
    total = first.values if isinstance(first, PartialProduct) else multiply(first, weight, bias)
    for part in others:
        total = total + (part.values if isinstance(part, PartialProduct) else multiply(part, weight, bias))
    # In place saves a pass over memory, but a product may be used again, and autograd copies what is a view of another.
    return (torch.relu_(total) if others else torch.relu(total)).reshape(-1, total.shape[-1])


def leading_shape(parts: Sequence[Part]) -> torch.Size:
    """What the leading dimensions broadcast to."""
    return torch.broadcast_shapes(*(part.values.shape[:-1] for part in parts))


def in_pieces(parts: Sequence[Part], max_rows: int) -> list[Sequence[Part]]:
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
