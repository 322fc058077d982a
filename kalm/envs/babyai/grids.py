"""Grids of BabyAI, as minigrid lays them out: the Synth family at any size, and TEDUO's two rooms for three skills.

A Synth grid of nine rooms of size 8 is that of minigrid's ``BabyAI-Synth-v0`` under the same seed (TEDUO, section 5).
The skill grids are two rooms of size 6 (TEDUO, table 3): in A the box to pick up is in the other room behind an open
door, in B the closed door is to be opened, and in C the box to pick up is behind a closed door.

Shape letters: W columns, H rows, N tiles to start from.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np
from minigrid.envs.babyai.core.levelgen import LevelGen
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.babyai.core.verifier import ActionInstr, ObjDesc, OpenInstr, PickupInstr
from numpy.typing import NDArray

from kalm.envs.babyai.goals import MAX_STEPS
from kalm.envs.babyai.layout import COLORS, DOOR_STATES, EMPTY, NUM_CODES, WALL, describe, put_agent

Level = Any  # one of minigrid's environments, which say too little of their types

LAYOUTS = ("synth", "skill_a", "skill_b", "skill_c")
DISTRACTORS_A_ROOM = 2  # as in BabyAI-Synth: 18 things in nine rooms
LOCKED_ROOM_SHARE = 0.5  # of grids, as in BabyAI-Synth
_SKILL_ROOM_SIZE = 6
# minigrid's numbers of what its encoding names.
_KIND_NUMBERS = {"door": 4, "key": 5, "ball": 6, "box": 7}
_EMPTY, _WALL, _WALL_COLOR = 1, 2, 5
_STATES, _COLORS = 3, 6


@dataclass(frozen=True, eq=False)
class Grid:
    """A place as an episode finds it, without the agent.

    Attributes:
        number: Seed that it was laid out from.
        tiles: Codes of what is on each tile, shape (W, H).
        starts: Tiles where an agent may begin, shape (N, 2): empty ones, outside a locked room.
    """

    number: int
    tiles: NDArray[np.uint8] = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)

    def random_state(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """An agent with empty hands anywhere that it may begin, facing anywhere; shape (W, H, 2)."""
        x, y = self.starts[rng.integers(len(self.starts))].tolist()
        return put_agent(self.tiles, x, y, int(rng.integers(4)))


class SkillLevel(RoomGridLevel):
    """Two rooms and a door of a random colour between them; the agent is in the left one.

    Args:
        skill: ``skill_a``, ``skill_b`` or ``skill_c``.
    """

    locked_room: ClassVar[None] = None
    action_kinds: ClassVar[tuple[str, ...]] = ()  # what minigrid's own levels draw a command from
    instr_kinds: ClassVar[tuple[str, ...]] = ()

    def __init__(self, skill: str, **settings: Any) -> None:
        """Keep which skill it is for."""
        self.skill = skill
        super().__init__(room_size=_SKILL_ROOM_SIZE, num_rows=1, num_cols=2, **settings)

    def gen_mission(self) -> None:
        """Place everything; the mission is what the grid is for."""
        door, _ = self.add_door(0, 0, door_idx=0, locked=False)
        door.is_open = self.skill == "skill_a"
        if self.skill != "skill_b":
            self.add_object(1, 0, "box")
        self.place_agent(0, 0)
        self.instrs = self.rand_instr(self.action_kinds, self.instr_kinds)

    def rand_instr(self, action_kinds: Sequence[str], instr_kinds: Sequence[str], depth: int = 0) -> ActionInstr:
        """What the grid is for, the one command there is; called and given as in minigrid's own levels."""
        return OpenInstr(ObjDesc("door")) if self.skill == "skill_b" else PickupInstr(ObjDesc("box"))


def make_level(layout: str, room_size: int, num_rows: int, num_cols: int) -> Level:
    """The level of minigrid that lays grids out; see ``BabyAI`` for the arguments.

    A locked door needs a second room, so one room has none. The number of things grows with that of rooms.
    """
    if layout != "synth":
        return SkillLevel(layout, max_steps=MAX_STEPS)
    num_rooms = num_rows * num_cols
    return LevelGen(
        room_size=room_size,
        num_rows=num_rows,
        num_cols=num_cols,
        num_dists=DISTRACTORS_A_ROOM * num_rooms,
        locked_room_prob=LOCKED_ROOM_SHARE if num_rooms > 1 else 0.0,
        locations=False,
        unblocking=True,
        implicit_unlock=False,
        action_kinds=("goto", "pickup", "open", "putnext") if num_rooms > 1 else ("goto", "pickup", "putnext"),
        instr_kinds=["action"],
        max_steps=MAX_STEPS,
    )


def reset_quietly(level: Level, seed: int | None = None) -> None:
    """Reset a level; minigrid prints what it rejects while it lays one out."""
    with redirect_stdout(io.StringIO()):
        level.reset(seed=seed)


def make_grid(level: Level, number: int) -> Grid:
    """The grid that a level lays out from a seed."""
    reset_quietly(level, number)
    tiles = tiles_of_encoding(level.grid.encode())
    starts = np.argwhere(tiles == EMPTY)
    if isinstance(level, SkillLevel):
        starts = starts[starts[:, 0] < _SKILL_ROOM_SIZE - 1]
    elif level.locked_room is not None:
        starts = np.array([place for place in starts.tolist() if not level.locked_room.pos_inside(*place)])
    return Grid(number, tiles, starts)


def tiles_of_encoding(encoding: NDArray[Any]) -> NDArray[np.uint8]:
    """Codes of tiles, (W, H), from what minigrid's ``Grid.encode`` gives, (W, H, 3)."""
    to_code, _ = _code_tables()
    codes = to_code[tuple(np.moveaxis(encoding, -1, 0))]
    if (codes == np.iinfo(np.uint8).max).any():
        raise ValueError("a thing is none of BabyAI's; only walls, doors, keys, balls and boxes have codes")
    return codes


def encoding_of_tiles(tiles: NDArray[Any]) -> NDArray[np.uint8]:
    """What minigrid's ``Grid.decode`` reads, (W, H, 3), from codes of tiles, (W, H)."""
    return _code_tables()[1][tiles]


@cache
def _code_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Code by kind, colour and state in minigrid's numbers, and those three by code."""
    to_code = np.full((max(_KIND_NUMBERS.values()) + 1, _COLORS, _STATES), np.iinfo(np.uint8).max, dtype=np.uint8)
    to_code[_EMPTY], to_code[_WALL] = EMPTY, WALL
    to_encoding = [(_EMPTY, 0, 0), (_WALL, _WALL_COLOR, 0)]
    while len(to_encoding) < NUM_CODES:
        kind, color, state = describe(len(to_encoding))
        numbers = _KIND_NUMBERS[kind], COLORS.index(color), DOOR_STATES.index(state) if state else 0
        to_code[numbers] = len(to_encoding)
        to_encoding.append(numbers)
    return to_code, np.array(to_encoding, dtype=np.uint8)
