"""The bridge to minigrid itself: its environments from our states and goals, its verifiers, and its bot.

Shape letters: W columns, H rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from minigrid.core.grid import Grid as MinigridGrid
from minigrid.core.world_object import WorldObj
from minigrid.envs.babyai.core.roomgrid_level import RejectSampling
from minigrid.envs.babyai.core.verifier import (
    ActionInstr,
    GoToInstr,
    ObjDesc,
    OpenInstr,
    PickupInstr,
    PutNextInstr,
)
from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError
from numpy.typing import NDArray

from kalm.envs.babyai.goals import BabyAIGoal, GoTo, GoToTile, Open, PickUp, PutNext, Thing
from kalm.envs.babyai.grids import Level, encoding_of_tiles, tiles_of_encoding
from kalm.envs.babyai.layout import EMPTY, TILES, agent_of, put_agent

_IN_THE_HAND = (-1, -1)  # where minigrid says that a carried thing is


def state_of(level: Level) -> NDArray[np.uint8]:
    """What a level looks like now, shape (W, H, 2)."""
    carried = EMPTY
    if level.carrying is not None:
        carried = int(tiles_of_encoding(np.array(level.carrying.encode())))
    x, y = level.agent_pos
    return put_agent(tiles_of_encoding(level.grid.encode()), int(x), int(y), int(level.agent_dir), carried)


def put_state(level: Level, state: NDArray[np.uint8]) -> None:
    """Make a level, which has been reset once, look like a state, (W, H, 2), with no step taken.

    Walls and doors must be where the level has them, so that its rooms are what they were.
    """
    x, y, direction, carried = (int(value) for value in agent_of(state))
    grid: Any = MinigridGrid.decode(encoding_of_tiles(state[..., TILES]))[0]
    for column, row in np.argwhere(state[..., TILES]).tolist():
        thing = grid.get(column, row)
        thing.cur_pos = thing.init_pos = (column, row)
    level.grid = grid
    for room in (room for rooms in level.room_grid for room in rooms):
        room.doors = [old and grid.get(*place) for old, place in zip(room.doors, room.door_pos, strict=True)]
    level.agent_pos, level.agent_dir = (x, y), direction
    level.carrying = None
    if carried != EMPTY:
        level.carrying = WorldObj.decode(*encoding_of_tiles(np.array(carried)).tolist())
        level.carrying.cur_pos = level.carrying.init_pos = _IN_THE_HAND
    level.step_count = 0


def put_goal(level: Level, goal: BabyAIGoal) -> None:
    """Make a level ask for a goal from now on; its verifier ends the episode when that is met."""
    put_command(level, command_of(goal))


def put_command(level: Level, command: ActionInstr) -> None:
    """Make a level ask for a command of minigrid's own from now on."""
    level.instrs = command
    level.instrs.reset_verifier(level)


def command_of(goal: BabyAIGoal) -> ActionInstr:
    """The command of minigrid that says the same as a goal."""
    if isinstance(goal, GoToTile):
        return GoToTileInstr(goal.x, goal.y)
    if isinstance(goal, PutNext):
        return PutNextInstr(_description(goal.thing), _description(goal.place))
    assert isinstance(goal, (PickUp, GoTo, Open))
    return {PickUp: PickupInstr, GoTo: GoToInstr, Open: OpenInstr}[type(goal)](_description(goal.thing))


def goal_of(command: Any) -> BabyAIGoal:
    """The goal that says the same as a command of minigrid."""
    if isinstance(command, GoToTileInstr):
        return GoToTile(*command.tile)
    if isinstance(command, PutNextInstr):
        return PutNext(_thing(command.desc_move), _thing(command.desc_fixed))
    classes: dict[type, Any] = {PickupInstr: PickUp, GoToInstr: GoTo, OpenInstr: Open}
    return classes[type(command)](_thing(command.desc))


def random_command(level: Level) -> ActionInstr:
    """A command in BabyAI's own way, drawn from the level's source of chance, that makes sense where the level is."""
    while True:
        try:
            command = level.rand_instr(level.action_kinds, level.instr_kinds)
            level.validate_instrs(command)
        except (RejectSampling, RecursionError):  # minigrid's two ways to say that it must be drawn again
            continue
        return command


class GoToTileInstr(ActionInstr):
    """Stand on a tile, which minigrid has no command for."""

    def __init__(self, x: int, y: int) -> None:
        """Keep which tile."""
        super().__init__()
        self.tile = (x, y)

    def surface(self, env: Any) -> str:
        """In TEDUO's words."""
        return f"go to the tile {self.tile}"

    def verify_action(self, action: Any = None) -> str:
        """Whether the agent is there."""
        return "success" if tuple(map(int, self.env.agent_pos)) == self.tile else "continue"


class Bot:
    """minigrid's own bot on the command of a level. It sees what the agent has seen, and it explores.

    It gives up, with None for an action, where it finds no way: minigrid's code then fails in one way or another.
    """

    def __init__(self, level: Level) -> None:
        """Begin to plan."""
        self._bot = BabyAIBot(level)
        self._last_action: int | None = None

    def act(self) -> int | None:
        """The next action."""
        try:
            self._last_action = int(self._bot.replan(self._last_action))
        except (AssertionError, DisappearedBoxError, AttributeError, TypeError, IndexError, ValueError):
            return None
        return self._last_action


def _description(thing: Thing) -> ObjDesc:
    return ObjDesc(thing.kind, thing.color)


def _thing(description: ObjDesc) -> Thing:
    return Thing(description.type, description.color)
