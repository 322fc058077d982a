"""Tests of the grids: they are minigrid's, the same under the same seed, and nobody begins where it is forbidden."""

import numpy as np
import pytest
from gymnasium import make
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel

from kalm.envs.babyai.grids import encoding_of_tiles, make_grid, make_level, reset_quietly, tiles_of_encoding
from kalm.envs.babyai.layout import EMPTY, NUM_CODES, WALL, codes_matching, describe


def _level_of(layout: str = "synth", room_size: int = 8, num_rows: int = 3, num_cols: int = 3) -> RoomGridLevel:
    return make_level(layout, room_size, num_rows, num_cols)


def test_a_synth_grid_is_the_one_of_minigrid_under_the_same_seed() -> None:
    """By minigrid's registered level, three seeds."""
    original = make("BabyAI-Synth-v0").unwrapped
    level = _level_of()
    for number in range(3):
        reset_quietly(original, number)
        grid = make_grid(level, number)
        assert np.array_equal(grid.tiles, tiles_of_encoding(original.grid.encode()))


def test_grids_are_the_same_whatever_was_made_before() -> None:
    """Grid 5 after nothing and after grid 6."""
    level = _level_of()
    first, other = make_grid(level, 5), make_grid(level, 6)
    again = make_grid(_level_of(), 5)
    assert np.array_equal(first.tiles, again.tiles)
    assert np.array_equal(first.starts, again.starts)
    assert not np.array_equal(first.tiles, other.tiles)


def test_nobody_begins_on_a_thing_or_in_a_locked_room(capsys: pytest.CaptureFixture[str]) -> None:
    """Six grids, of which some have a locked room; minigrid's printing is not heard."""
    level, num_locked = _level_of(room_size=6), 0
    for number in range(6):
        grid = make_grid(level, number)
        x, y = grid.starts.T
        assert (grid.tiles[x, y] == EMPTY).all()
        if level.locked_room is not None:
            num_locked += 1
            assert not any(level.locked_room.pos_inside(*place) for place in grid.starts.tolist())
    assert num_locked > 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("num_rows", "num_cols", "side"), [(1, 1, (8, 8)), (2, 3, (22, 15)), (4, 4, (29, 29))])
def test_any_number_of_rooms(num_rows: int, num_cols: int, side: tuple[int, int]) -> None:
    """Rooms share their walls: n rooms of size 8 make 7 n + 1 tiles."""
    grid = make_grid(_level_of(num_rows=num_rows, num_cols=num_cols), 1)
    assert grid.tiles.shape == side
    assert (grid.tiles[[0, -1]] == WALL).all()
    assert (grid.tiles[:, [0, -1]] == WALL).all()


@pytest.mark.parametrize(
    ("skill", "door_state", "num_boxes"), [("a", "open", 1), ("b", "closed", 0), ("c", "closed", 1)]
)
def test_skill_grids_are_two_rooms_and_a_door(skill: str, door_state: str, num_boxes: int) -> None:
    """Rooms of 4 x 4 tiles inside, the agent in the left one, a box in the right one but for B."""
    level = _level_of(f"skill_{skill}")
    for number in range(3):
        grid = make_grid(level, number)
        assert grid.tiles.shape == (11, 6)
        ((x, y),) = np.argwhere(np.isin(grid.tiles, codes_matching("door"))).tolist()
        assert x == 5
        assert describe(grid.tiles[x, y])[2] == door_state
        boxes = np.argwhere(np.isin(grid.tiles, codes_matching("box")))
        assert len(boxes) == num_boxes
        assert (boxes[:, 0] > 5).all()
        assert (grid.starts[:, 0] < 5).all()
        assert len(grid.starts) == 16


def test_codes_and_the_encoding_of_minigrid_say_the_same() -> None:
    """Every code there and back; what has none is refused."""
    codes = np.arange(NUM_CODES, dtype=np.uint8).reshape(2, -1)
    assert np.array_equal(tiles_of_encoding(encoding_of_tiles(codes)), codes)
    with pytest.raises(ValueError, match="none of"):
        tiles_of_encoding(np.array([[[3, 0, 0]]]))  # a coloured floor
