"""A state in words for a language model, and the model's answer as actions (TEDUO, figures C.5, C.6 and C.9).

Two formats: a concrete state lists what stands on which tile by kind and colour, an abstract one by the part that it
plays in the goal. Tiles are (column, row) from 0 at the top left. Of walls only the inner ones are listed, as in the
paper: every grid has an outer one. The concrete format is read back by ``state_of_text``, so that what a judge was
shown can be compared with the state that it was about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.envs.babyai.layout import (
    DOOR_STATES,
    EMPTY,
    FIRST_GOAL_DOOR,
    FIRST_KEY,
    FIRST_LOCATION_DOOR,
    FIRST_PLAIN_DOOR,
    GOAL_BOTH,
    GOAL_LOCATION,
    GOAL_OBJECT,
    GOAL_TILE,
    KINDS,
    NUM_ACTIONS,
    NUM_CODES,
    OBSTACLE,
    TILES,
    WALL,
    agent_of,
    code_of,
    describe,
    put_agent,
)

ACTION_NAMES = ("turn left", "turn right", "move forward", "pick up", "drop", "toggle", "done")
ACTION_ANSWERS = tuple(str(action) for action in range(NUM_ACTIONS))
DIRECTION_NAMES = ("right", "down", "left", "up")


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


_PARTS = {
    GOAL_OBJECT: "goal object",
    GOAL_LOCATION: "goal location",
    GOAL_BOTH: "goal object that is also a goal location",
    GOAL_TILE: "goal location, free to stand on,",
    OBSTACLE: "obstacle",
    **{FIRST_GOAL_DOOR + number: f"goal object, {_a(state)} door," for number, state in enumerate(DOOR_STATES)},
    **{FIRST_LOCATION_DOOR + number: f"goal location, {_a(state)} door," for number, state in enumerate(DOOR_STATES)},
}


def text_of_state(state: NDArray[Any]) -> str:
    """A state, (W, H, 2), as numbered features: walls, then boxes, doors, keys and balls by tile, then the agent.

    An abstract state is told by its codes and gets the abstract format: walls, obstacles, doors by state, what plays a
    part in the goal, then the agent.
    """
    tiles = state[..., TILES]
    lines = [f"The following tiles are wall: {_listed(_inner(tiles == WALL))}"]
    x, y, direction, carried = (int(part) for part in agent_of(state))
    if max(int(tiles.max()), carried) >= NUM_CODES:
        lines += _abstract_lines(tiles)
    else:
        lines += _concrete_lines(tiles)
    lines.append(f"Inventory: [{'' if carried == EMPTY else _name(carried)}]")
    lines.append(f"The agent is on tile ({x},{y})")
    lines.append(f"The agent is facing {DIRECTION_NAMES[direction]}")
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines))


def state_of_text(text: str, width: int, height: int) -> NDArray[np.uint8]:
    """The state, (W, H, 2), that ``text_of_state`` put into words; of concrete states only.

    Raises:
        DataError: If a line is none of that format.
    """
    tiles = np.full((width, height), WALL, dtype=np.uint8)
    tiles[1:-1, 1:-1] = EMPTY
    x, y, direction, carried = 0, 0, 0, EMPTY
    for line in text.strip().splitlines():
        feature = re.sub(r"^\d+\. ", "", line.strip())
        found = [(int(column), int(row)) for column, row in re.findall(r"\((\d+),(\d+)\)", feature)]
        if any(column >= width or row >= height for column, row in found):
            raise DataError(f"a state has the line {line!r}; its tiles must lie in a grid of {width} by {height}")
        if feature.startswith("The following tiles are wall:"):
            for tile in found:
                tiles[tile] = WALL
        elif match := re.fullmatch(r"An? (.+) is on tile \S+", feature):
            tiles[found[0]] = _code_of_name(match[1], line)
        elif match := re.fullmatch(r"Inventory: \[(?:an? (.+))?\]", feature):
            carried = _code_of_name(match[1], line) if match[1] else EMPTY
        elif re.fullmatch(r"The agent is on tile \S+", feature):
            x, y = found[0]
        elif match := re.fullmatch(rf"The agent is facing ({'|'.join(DIRECTION_NAMES)})", feature):
            direction = DIRECTION_NAMES.index(match[1])
        else:
            raise DataError(f"a state has the line {line!r}, which is none of the concrete format's")
    return put_agent(tiles, x, y, direction, carried)


def actions_of_answer(text: str) -> tuple[int, ...]:
    """The actions of a model's answer: a number such as ``2``, or a list such as ``[2, 2, 0]``.

    Raises:
        DataError: If it is neither, or a number is no action's.
    """
    allowed = f"one of 0 to {NUM_ACTIONS - 1} or a list of them such as [2, 2, 0]"
    match = re.fullmatch(r"\s*(?:\[\s*(\d+(?:\s*,\s*\d+)*)\s*,?\s*\]|(\d+))\s*\.?\s*", text)
    if match is None:
        raise DataError(f"an answer is {text!r}; it must be {allowed}, and nothing else")
    actions = tuple(int(number) for number in re.findall(r"\d+", match[1] or match[2]))
    if max(actions) >= NUM_ACTIONS:
        raise DataError(f"an answer has the action {max(actions)}; it must be {allowed}")
    return actions


def text_of_actions(actions: Iterable[int]) -> str:
    """What ``actions_of_answer`` reads, as a list."""
    return f"[{', '.join(str(int(action)) for action in actions)}]"


def action_dictionary() -> str:
    """What each number does, as a prompt lists it."""
    return "{" + ", ".join(f"{number}: {name}" for number, name in enumerate(ACTION_NAMES)) + "}"


def conversation(state: NDArray[Any], instruction: str) -> list[dict[str, str]]:
    """Messages that ask for the next action in a state, (W, H, 2); an answer is one of ``ACTION_ANSWERS``."""
    width, height, _ = state.shape
    told = (
        "You move an agent through rooms of coloured things so that it reaches a goal as soon as it can. "
        f"The rooms lie on a grid of {width} by {height} tiles, (column, row) from (0,0) at the top left. "
        f"Its actions are {action_dictionary()}. Answer with the number of the best next action and nothing else."
    )
    asked = f"State:\n{text_of_state(state)}\nGoal: {instruction}"
    return [{"role": "system", "content": told}, {"role": "user", "content": asked}]


def rules(width: int, height: int) -> str:
    """When goals are met, for a judge who is shown a state of a grid as ``text_of_state`` tells it."""
    return (
        f"The world is a grid of {width} by {height} tiles, (column, row) from (0,0) at the top left, with rooms, "
        "doors, boxes, keys and balls. An agent walks on it, turns, carries things and opens doors; what it carries is "
        "in its inventory. One step to the right adds 1 to the column, one step down adds 1 to the row.\n"
        "A thing that a goal names may be any of that kind and colour; where it names no colour, of any colour. Goals "
        "may use other words for kinds and colours.\n"
        "- To pick up a thing: it is in the inventory.\n"
        "- To go to a thing: it is on the one tile that lies in front of the agent, one step in the direction that the "
        "agent faces.\n"
        "- To open a door: a door of that colour stands open.\n"
        "- To put a thing next to another: both lie on the grid, on tiles that are exactly one step apart, across or "
        "down.\n"
        "- To go to a tile: the agent is on exactly that tile."
    )


def _concrete_lines(tiles: NDArray[Any]) -> list[str]:
    lines = []
    for kind in ("box", "door", "key", "ball"):
        for x, y in np.argwhere((tiles >= FIRST_KEY) & (tiles < NUM_CODES)):
            code = int(tiles[x, y])
            if describe(code)[0] == kind:
                lines.append(f"{_name(code).capitalize()} is on tile ({x},{y})")
    return lines


def _abstract_lines(tiles: NDArray[Any]) -> list[str]:
    lines = [f"The following tiles are obstacles: {_listed(tiles == OBSTACLE)}"]
    for number, state in enumerate(DOOR_STATES):
        lines.append(f"The following tiles are {state} doors: {_listed(tiles == FIRST_PLAIN_DOOR + number)}")
    for code, part in _PARTS.items():
        if code != OBSTACLE:
            lines += [f"A {part} is on tile ({x},{y})" for x, y in np.argwhere(tiles == code)]
    return lines


def _inner(is_there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inner = np.zeros_like(is_there)
    inner[1:-1, 1:-1] = is_there[1:-1, 1:-1]
    return inner


def _listed(is_there: NDArray[np.bool_]) -> str:
    return " ".join(f"({x},{y})" for x, y in np.argwhere(is_there)) or "none"


def _name(code: int) -> str:
    """Such as ``a red ball``, ``an open red door`` or ``a goal object``."""
    if code in _PARTS:
        name = _PARTS[code].rstrip(",")
    else:
        kind, color, state = describe(code)
        name = f"{state} {color} {kind}".strip()
    return _a(name)


def _code_of_name(name: str, line: str) -> int:
    *state, color, kind = ["", *name.split()]
    try:
        return code_of(kind, color, state[-1]) if kind == "door" else code_of(kind, color)
    except (KeyError, ValueError) as error:
        raise DataError(f"a state has the line {line!r}; it must name a color and one of {', '.join(KINDS)}") from error
