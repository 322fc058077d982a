"""What is read of a grid: worked by hand where things lie, whichever way the agent faces, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kalm.core.errors import DataError
from kalm.core.specs import DiscreteAction, GridObservation, Spec, vector_spec
from kalm.rl.networks.grid_encoder import GridEncoder, observation_token
from kalm.rl.networks.mlp import critic_network, goal_conditioned_mlp
from tests.rl.helpers import GRID, observations

SIZE, THING, CARRIED = 13, 7, 9
SPEC = Spec(GridObservation((SIZE, SIZE, 2)), DiscreteAction(3), goal_embedding_size=4)
CENTRE = 5  # of the eleven bands, the one of the agent's own row or column


def state(agent: tuple[int, int], direction: int, thing: tuple[int, int], carried: int = 0) -> Tensor:
    """A grid of nothing but one thing, shape (1, W, H, 2)."""
    found = torch.zeros(1, SIZE, SIZE, 2, dtype=torch.uint8)
    found[0, thing[0], thing[1], 0] = THING
    found[0, agent[0], agent[1], 1] = 1 + direction + 4 * carried
    return found


def counting_encoder() -> GridEncoder:
    """An encoder whose numbers say how often the thing is in each region: code, goal and channels add nothing."""
    encoder = GridEncoder(SPEC, code_size=1)
    with torch.no_grad():
        encoder.code.weight.zero_()
        encoder.code.weight[THING], encoder.code.weight[CARRIED] = 1.0, 5.0
        encoder.wanted.weight.zero_()
        encoder.wanted.bias.zero_()
        encoder.channels.weight.fill_(1.0)
    return encoder


@pytest.mark.parametrize(
    ("direction", "thing", "bands"),
    [
        (0, (6, 6), (0, 0)),
        (0, (8, 6), (2, 0)),  # two columns on, the way it faces
        (0, (6, 7), (0, 1)),  # facing x + 1, its right hand is at y + 1
        (1, (6, 7), (1, 0)),  # facing y + 1
        (1, (6, 9), (3, 0)),  # three and four tiles on are one band
        (1, (6, 10), (3, 0)),
        (2, (8, 6), (-2, 0)),  # behind it
        (3, (12, 0), (4, 4)),  # six up, which is ahead, and six to its right
        (2, (6, 0), (0, 4)),  # facing x - 1, up is to its right
    ],
)
def test_a_thing_is_counted_where_the_agent_sees_it(
    direction: int, thing: tuple[int, int], bands: tuple[int, int]
) -> None:
    """In one region, by bands ahead and to the right; the agent is in the middle of 13 x 13 tiles."""
    found = counting_encoder()(state((6, 6), direction, thing), torch.zeros(1, 4))[0]
    regions = found[:-1].view(11, 11, -1)[..., 0]
    expected = torch.zeros(11, 11)
    expected[CENTRE + bands[0], CENTRE + bands[1]] = 1
    assert torch.equal(regions, expected)


def test_what_is_carried_stands_behind_the_regions() -> None:
    """It is the last number here."""
    encoder = counting_encoder()
    assert encoder(state((6, 6), 2, (0, 0), CARRIED), torch.zeros(1, 4))[0, -1] == 5
    assert encoder(state((6, 6), 2, (0, 0)), torch.zeros(1, 4))[0, -1] == 0


def test_the_goal_says_which_numbers_of_a_code_count() -> None:
    """The thing is seen as 1 + the goal's number, and as 1 under a goal of zeros."""
    encoder = counting_encoder()
    with torch.no_grad():
        encoder.wanted.weight[0, 2] = 1.0
    goals = torch.tensor([[0.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    seen = encoder(state((6, 6), 0, (7, 6)).expand(2, -1, -1, -1), goals)
    assert seen[:, :-1].amax(1).tolist() == [4.0, 1.0]


def test_leading_dimensions_stay_and_goals_broadcast() -> None:
    """Windows, (B, T, W, H, 2), with one goal each, as single states with that goal; a blank state is read, too."""
    generator = torch.Generator().manual_seed(0)
    windows = observations(GRID, 6, generator).unflatten(0, (2, 3))
    windows[1, 2] = 0
    goal = torch.randn(2, 1, 4, generator=generator)
    encoder = GridEncoder(GRID)
    found = encoder(windows, goal)
    assert found.shape == (2, 3, encoder.output_size)
    torch.testing.assert_close(found[1, 2], encoder(windows[1, 2:], goal[1])[0])
    torch.testing.assert_close(found[0, 1], encoder(windows[0, 1:2], goal[0])[0])


def test_networks_of_vectors_are_what_they_were() -> None:
    """No encoder, and the names of parameters that checkpoints have."""
    spec = vector_spec(5, 3, is_discrete=True, goal_embedding_size=4)
    assert {name for name, _ in observation_token(spec, 8).named_parameters()} == {"weight", "bias"}
    assert "hidden.0.weight" in dict(goal_conditioned_mlp(spec, [8], 3).named_parameters())
    assert "first_weight" in dict(critic_network(spec, [8]).named_parameters())


@pytest.mark.parametrize(
    "grid",
    [
        GridObservation((5, 5, 3)),
        GridObservation((5, 5)),
        GridObservation((5, 5, 2), 1),
        GridObservation((5, 5, 2), 0, True),
    ],
)
def test_other_grids_are_refused(grid: Any) -> None:
    """More planes, none, numbers beside the grid, 16 bits."""
    with pytest.raises(DataError, match="reads grids that one agent walks on"):
        goal_conditioned_mlp(Spec(grid, DiscreteAction(3), 4), [8], 3)
