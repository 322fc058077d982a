"""What an agent sees: the tiles around it, turned its way."""

from __future__ import annotations

import numpy as np
import torch

from kalm.envs.babyai.layout import NUM_CODES, WALL, agent_of, code_of, in_front, put_agent
from kalm.rl.networks.agent_view import agent_view, patch_places


def states(num_states: int = 40) -> np.ndarray:
    """Random tiles with an agent inside, shape (B, 6, 7, 2)."""
    rng = np.random.default_rng(0)
    return np.stack([
        put_agent(
            rng.integers(NUM_CODES, size=(6, 7)).astype(np.uint8),
            int(rng.integers(1, 5)),
            int(rng.integers(1, 6)),
            int(rng.integers(4)),
            int(rng.integers(20)),
        )
        for _ in range(num_states)
    ])  # fmt: skip


def test_a_state_comes_apart_as_in_the_layout() -> None:
    """Place, direction and hand are those that the world's own reading gives, and so is the tile in front."""
    found, (x, y, direction, carried) = agent_view(torch.from_numpy(states())), agent_of(states())
    assert found.place.tolist() == (x * 7 + y).tolist()
    assert found.direction.tolist() == direction.tolist()
    assert found.carried.tolist() == carried.tolist()
    assert found.in_front(WALL).tolist() == in_front(states()).tolist()


def test_a_situation_is_a_place_a_direction_and_a_hand() -> None:
    """Two states are in the same one exactly if all three agree; 2 x 2 x 4 x 38 are all different."""
    tiles = np.zeros((5, 5), dtype=np.uint8)
    all_of_them = [
        put_agent(tiles, x, y, direction, carried)
        for x in (1, 2) for y in (1, 3) for direction in range(4) for carried in range(NUM_CODES)
    ]  # fmt: skip
    situation = agent_view(torch.from_numpy(np.stack(all_of_them))).situation
    assert len(situation.unique()) == len(all_of_them)
    moved = np.stack([put_agent(np.full_like(tiles, WALL), 2, 3, 1, 7), put_agent(tiles, 2, 3, 1, 7)])
    assert len(agent_view(torch.from_numpy(moved)).situation.unique()) == 1


def test_the_patch_turns_with_the_agent() -> None:
    """A ball ahead and a key to the right are in the same places of the patch, whichever way the agent faces."""
    ball, key = code_of("ball", "red"), code_of("key", "red")
    ahead = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    for direction in range(4):
        tiles = np.zeros((5, 5), dtype=np.uint8)
        (a, b), (c, d) = ahead[direction], ahead[(direction + 1) % 4]
        tiles[2 + a, 2 + b], tiles[2 + c, 2 + d] = ball, key
        view = agent_view(torch.from_numpy(put_agent(tiles, 2, 2, direction))[None])
        bordered = torch.nn.functional.pad(view.tiles, (1, 1, 1, 1)).flatten(1)
        patch = bordered.gather(1, patch_places(view, 1)).view(3, 3)
        assert patch.tolist() == [[0, ball, 0], [0, 0, key], [0, 0, 0]]
