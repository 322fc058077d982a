"""Exact shortest paths on a grid as a layer: what the best path from each tile is worth, and how that would change.

A path begins on a tile, goes on across or down, one tile at a time, and may end anywhere. It earns the reward of the
tile where it ends and pays the cost of every tile that it passes, which is every one but the last. So a thing to
stand before needs a reward and may still be in the way of all paths that lead elsewhere.

The value of a tile solves V(s) = max(reward(s), max over neighbours n of V(n) - cost(s)). This is a maximum over
finitely many sums, so it is found exactly, and its gradient is that of the best path: 1 for the reward at its end, -1
for each cost on the way. Where two paths are worth the same, one of them is taken.

Shape letters: M maps, W columns, H rows.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STAY = 4  # where a path ends; 0 to 3 are the neighbours that it may go on to


def shortest_paths(reward: Tensor, cost: Tensor) -> Tensor:
    """What the best path from each tile is worth.

    Args:
        reward: Of ending on a tile, shape (..., W, H).
        cost: Of passing a tile, above 0, of the same shape.

    Returns:
        Values, of the same shape, float32 on the device of ``reward``; the work is done on the processor.
    """
    width, height = reward.shape[-2:]
    values = _ShortestPaths.apply(reward.reshape(-1, width, height), cost.reshape(-1, width, height))
    return values.view(reward.shape)


class _ShortestPaths(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, reward: Tensor, cost: Tensor) -> Tensor:
        """Values of M maps, and in ``ctx`` where the best path goes on from each tile."""
        values, ctx.moves = _solve(_array(reward), _array(cost))
        return torch.from_numpy(values).to(reward.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor]:
        """Follow the path of every tile that has a gradient."""
        (gradient,) = gradients
        of_reward, of_cost = _trace(_array(gradient), ctx.moves)
        return torch.from_numpy(of_reward).to(gradient.device), torch.from_numpy(of_cost).to(gradient.device)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().cpu().contiguous().numpy()


@numba.njit(cache=True)
def _solve(reward: Any, cost: Any) -> Any:
    """Values (M, W, H), and the neighbour that the best path goes on to, int8 of the same shape."""
    num_maps, width, height = reward.shape
    values = np.empty((num_maps, width, height), np.float32)
    moves = np.empty((num_maps, width, height), np.int8)
    # A border that nobody goes to saves asking where the grid ends.
    value = np.full((width + 2, height + 2), -np.inf, np.float32)
    for number in range(num_maps):
        value[1:-1, 1:-1] = reward[number]
        # Each sweep carries values all the way in its two directions; four of them turn one corner after the other.
        is_changing = True
        while is_changing:
            is_changing = False
            for order in range(4):
                for i in range(width):
                    x = i if order % 2 == 0 else width - 1 - i
                    for j in range(height):
                        y = j if order < 2 else height - 1 - j
                        best = max(max(value[x, y + 1], value[x + 2, y + 1]), max(value[x + 1, y], value[x + 1, y + 2]))
                        best -= cost[number, x, y]
                        if best > value[x + 1, y + 1]:
                            value[x + 1, y + 1] = best
                            is_changing = True
        for x in range(width):
            for y in range(height):
                best, move = reward[number, x, y], _STAY
                if value[x + 1, y + 1] > best:
                    best = -np.inf
                    neighbours = (value[x + 2, y + 1], value[x + 1, y + 2], value[x, y + 1], value[x + 1, y])
                    for k in range(4):
                        if neighbours[k] > best:
                            best, move = neighbours[k], k
                values[number, x, y] = value[x + 1, y + 1]
                moves[number, x, y] = move
    return values, moves


@numba.njit(cache=True)
def _trace(gradient: Any, moves: Any) -> Any:
    """Gradients of reward and cost (M, W, H), given those of the values."""
    of_reward, of_cost = np.zeros_like(gradient), np.zeros_like(gradient)
    num_maps, width, height = gradient.shape
    for number in range(num_maps):
        for first_x in range(width):
            for first_y in range(height):
                amount = gradient[number, first_x, first_y]
                if amount == 0:
                    continue
                x, y = first_x, first_y
                move = moves[number, x, y]
                while move != _STAY:
                    of_cost[number, x, y] -= amount
                    if move == 0:
                        x += 1
                    elif move == 1:
                        y += 1
                    elif move == 2:
                        x -= 1
                    else:
                        y -= 1
                    move = moves[number, x, y]
                of_reward[number, x, y] += amount
    return of_reward, of_cost
