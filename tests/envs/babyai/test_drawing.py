"""Pictures without a window: things where they are, in their colours, and an instruction that hides none of them."""

from __future__ import annotations

import numpy as np
import pytest

from kalm.envs.babyai.abstraction import abstracted, select_by_rule
from kalm.envs.babyai.drawing import RGB, draw_observation
from kalm.envs.babyai.goals import PutNext, Thing
from kalm.envs.babyai.layout import EMPTY, WALL, code_of, put_agent

SIZE = 200  # ten tiles of 20 pixels


def _room(carried: int = EMPTY, direction: int = 0) -> np.ndarray:
    """One room of 8 by 8 with the agent at (5, 5), a blue ball, a green box, a yellow key and a purple door."""
    tiles = np.full((10, 10), WALL, dtype=np.uint8)
    tiles[1:9, 1:9] = EMPTY
    tiles[2, 2], tiles[7, 3] = code_of("ball", "blue"), code_of("box", "green")
    tiles[2, 7], tiles[9, 5] = code_of("key", "yellow"), code_of("door", "purple", "locked")
    return put_agent(tiles, 5, 5, direction, carried)


@pytest.mark.parametrize(
    ("color", "tile"), [("blue", (2, 2)), ("green", (7, 3)), ("yellow", (2, 7)), ("purple", (9, 5))]
)
def test_each_thing_is_drawn_in_its_colour_on_its_tile(color: str, tile: tuple[int, int]) -> None:
    """And nowhere else."""
    own = np.abs(draw_observation(_room(), size=SIZE) - np.array(RGB[color], dtype=float)).max(axis=-1) < 40
    rows, columns = np.nonzero(own)
    assert len(rows) > 8
    assert {(column // 20, row // 20) for row, column in zip(rows, columns, strict=True)} == {tile}


@pytest.mark.parametrize(("direction", "axis", "sign"), [(0, 1, 1), (1, 0, 1), (2, 1, -1), (3, 0, -1)])
def test_agent_points_where_it_looks(direction: int, axis: int, sign: int) -> None:
    """A triangle's middle lies towards its base: behind the middle of the tile."""
    tile = draw_observation(_room(direction=direction), size=SIZE)[100:120, 100:120]
    places = np.argwhere(tile[..., 0] > 200)
    assert sign * (places.mean(axis=0)[axis] - 9.5) < -1
    assert abs(places.mean(axis=0)[1 - axis] - 9.5) < 0.6


def test_carried_thing_is_drawn_on_the_agent() -> None:
    """In its colour."""
    empty, full = (draw_observation(_room(carried), size=SIZE) for carried in (EMPTY, code_of("ball", "green")))
    changed = np.argwhere((empty != full).any(axis=-1))
    assert (changed >= 98).all(), "but for the halo of shrinking it stays on its tile"
    assert (changed < 122).all()
    assert (full[100:120, 100:120, 1] > 200).any()


@pytest.mark.parametrize("shape", [(8, 8), (11, 6), (22, 22), (15, 22), (50, 50)])
def test_grids_of_any_size_fit(shape: tuple[int, int]) -> None:
    """With an instruction above them."""
    tiles = np.full(shape, WALL, dtype=np.uint8)
    tiles[1:-1, 1:-1] = EMPTY
    picture = draw_observation(put_agent(tiles, 1, 1, 0), "put a red ball next to a blue box", 160)
    assert picture.shape == (160, 160, 3)
    assert picture.dtype == np.uint8


def test_instruction_hides_no_tile() -> None:
    """The upper wall begins below it."""
    picture = draw_observation(_room(), "put a red ball next to a blue box", SIZE)
    middle = picture[:, SIZE // 2].astype(int)
    first_wall = int(np.flatnonzero(np.abs(middle - 100).max(axis=-1) < 4)[0])
    assert 20 <= first_wall <= 28
    assert (picture[:20] < 100).any(), "something is written"


def test_abstract_states_are_drawn_and_nothing_is_changed() -> None:
    """Parts have colours of their own."""
    state = _room(code_of("key", "red"))
    abstract = abstracted(state, select_by_rule(PutNext(Thing("ball"), Thing("door"))))
    kept = abstract.copy()
    assert (draw_observation(abstract, size=SIZE) != draw_observation(state, size=SIZE)).any()
    np.testing.assert_array_equal(abstract, kept)
