"""Shortest paths as a layer: by hand, against value iteration without a trick, and by finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kalm.rl.networks.shortest_path import shortest_paths


def random_maps(num_maps: int = 4, width: int = 6, height: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rewards and costs of maps with a few walls in them."""
    generator = torch.Generator().manual_seed(seed)
    reward = 5 * torch.rand(num_maps, width, height, generator=generator)
    cost = 0.1 + 0.3 * torch.rand(num_maps, width, height, generator=generator)
    return reward, cost + 20 * (torch.rand(num_maps, width, height, generator=generator) < 0.2)


def by_value_iteration(reward: Tensor, cost: Tensor) -> Tensor:
    """Apply the equation to all tiles at once until nothing changes."""
    value = reward
    while True:
        wide = functional.pad(value, (1, 1, 1, 1), value=-torch.inf)
        around = [wide[:, 2:, 1:-1], wide[:, :-2, 1:-1], wide[:, 1:-1, 2:], wide[:, 1:-1, :-2]]
        after = torch.maximum(reward, torch.stack(around).amax(0) - cost)
        if torch.equal(after, value):
            return value
        value = after


def test_a_path_pays_what_it_passes_and_earns_where_it_ends() -> None:
    """Three tiles in a row, rewards 0, 0, 10, costs 1, 2, 50: from the left 10 - 1 - 2, the last cost is never paid."""
    reward = torch.tensor([[[0.0], [0.0], [10.0]]], requires_grad=True)
    cost = torch.tensor([[[1.0], [2.0], [50.0]]], requires_grad=True)
    value = shortest_paths(reward, cost)
    assert value.flatten().tolist() == [7, 8, 10]
    value[0, 0, 0].backward()
    assert reward.grad is not None
    assert cost.grad is not None
    assert reward.grad.flatten().tolist() == [0, 0, 1]
    assert cost.grad.flatten().tolist() == [-1, -1, 0]


def test_staying_is_a_path_too() -> None:
    """Where nothing around is worth its way, the tile's own reward is the value."""
    value = shortest_paths(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 2.0]]))
    assert value.tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("seed", range(5))
def test_it_equals_value_iteration_to_the_last_bit(seed: int) -> None:
    """Whatever the order of sweeps, the maximum over paths is the same."""
    reward, cost = random_maps(num_maps=8, width=22, height=22, seed=seed)
    torch.testing.assert_close(shortest_paths(reward, cost), by_value_iteration(reward, cost), rtol=0, atol=1e-5)


def test_a_maze_longer_than_the_grid_is_wide_is_solved() -> None:
    """A snake of walls: the far end is 34 steps away, and worth its reward less 34 costs."""
    cost = torch.full((1, 9, 7), 0.1)
    cost[0, 1::4, :-1] = cost[0, 3::4, 1:] = 1000
    reward = torch.full((1, 9, 7), -100.0)
    reward[0, 8, 0] = 50
    values = shortest_paths(reward, cost)
    torch.testing.assert_close(values, by_value_iteration(reward, cost))
    assert float(values[0, 0, 0]) == pytest.approx(50 - 0.1 * 32, abs=1e-3)


def test_gradients_are_those_of_finite_differences() -> None:
    """The maximum is linear around a random point, so that differences are exact but for rounding."""
    reward, cost = (values[:1].requires_grad_() for values in random_maps(seed=3))
    weight = torch.randn(reward.shape, generator=torch.Generator().manual_seed(1))
    (shortest_paths(reward, cost) * weight).sum().backward()
    for values in (reward, cost):
        assert values.grad is not None
        for place in range(values.numel()):
            step = torch.zeros(values.numel()).index_fill_(0, torch.tensor([place]), 1e-4).double().view_as(values)
            ends = []
            for sign in (1, -1):
                moved = [one.detach() + sign * step * (one is values) for one in (reward, cost)]
                ends.append((by_value_iteration(*moved) * weight).sum())
            assert float(values.grad.flatten()[place]) == pytest.approx(float(ends[0] - ends[1]) / 2e-4, abs=1e-3)


def test_leading_dimensions_are_kept() -> None:
    """Maps of channels of states."""
    reward, cost = random_maps(num_maps=6)
    whole = shortest_paths(reward.view(2, 3, 6, 5), cost.view(2, 3, 6, 5))
    assert torch.equal(whole.flatten(0, 1), shortest_paths(reward, cost))
