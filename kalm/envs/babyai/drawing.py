"""Pictures of a grid from above, drawn with pillow in minigrid's manner: they need no window and no simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kalm.envs.babyai.layout import (
    EMPTY,
    FIRST_GOAL_DOOR,
    FIRST_LOCATION_DOOR,
    FIRST_PLAIN_DOOR,
    GOAL_BOTH,
    GOAL_LOCATION,
    GOAL_OBJECT,
    GOAL_TILE,
    NUM_CODES,
    STEPS,
    TILES,
    WALL,
    agent_of,
    describe,
)
from kalm.envs.drawing import BACKGROUND, Picture, write_instruction

RGB = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "purple": (112, 39, 195),
    "yellow": (255, 255, 0),
    "grey": (140, 140, 140),
}
_OVERSAMPLING = 2  # pillow draws hard edges: draw larger, then shrink
_BANNER = 0.12  # share of the picture's height that is kept for the instruction
_FLOOR, _LINE, _WALL = (0, 0, 0), (60, 60, 60), (100, 100, 100)
_AGENT = (255, 60, 60)
_PART_RGB = {
    GOAL_OBJECT: (255, 140, 0),
    GOAL_LOCATION: (0, 200, 200),
    GOAL_BOTH: (255, 0, 255),
    GOAL_TILE: (0, 200, 200),
}

Box = tuple[float, float, float, float]
Color = tuple[int, int, int]


def draw_observation(observation: NDArray[Any], instruction: str = "", size: int = 256) -> Picture:
    """Draw a state (W, H, 2), concrete or abstract, shape (size, size, 3), see ``Domain.draw``.

    What is in the hand is drawn small on the agent. With an instruction the grid is lower, so that no tile is hidden.
    """
    pixels = size * _OVERSAMPLING
    image = Image.new("RGB", (pixels, pixels), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    tiles = observation[..., TILES]
    top = _BANNER * pixels if instruction else 0.0
    side = min(pixels / tiles.shape[0], (pixels - top) / tiles.shape[1])
    left = (pixels - side * tiles.shape[0]) / 2
    top += (pixels - top - side * tiles.shape[1]) / 2

    def box_of(x: int, y: int) -> Box:
        return left + x * side, top + y * side, left + (x + 1) * side, top + (y + 1) * side

    for (x, y), code in np.ndenumerate(tiles):
        _draw_tile(canvas, box_of(x, y), int(code))
    x, y, direction, carried = (int(part) for part in agent_of(observation))
    _draw_agent(canvas, box_of(x, y), direction, carried)
    shrunk = image.resize((size, size), Image.Resampling.LANCZOS)
    return write_instruction(np.asarray(shrunk), instruction)


def _draw_tile(canvas: ImageDraw.ImageDraw, box: Box, code: int) -> None:
    canvas.rectangle(box, fill=_WALL if code == WALL else _FLOOR, outline=_WALL if code == WALL else _LINE)
    if code not in (EMPTY, WALL):
        _draw_thing(canvas, box, code)


def _draw_thing(canvas: ImageDraw.ImageDraw, box: Box, code: int) -> None:
    if code >= NUM_CODES:
        _draw_part(canvas, box, code)
        return
    kind, color, state = describe(code)
    width = max(1, round((box[2] - box[0]) / 10))
    if kind == "door":
        _draw_door(canvas, box, RGB[color], state)
    elif kind == "ball":
        canvas.ellipse(_part(box, 0.19, 0.19, 0.81, 0.81), fill=RGB[color])
    elif kind == "box":
        canvas.rectangle(_part(box, 0.14, 0.14, 0.86, 0.86), outline=RGB[color], width=width)
        canvas.rectangle(_part(box, 0.16, 0.47, 0.84, 0.53), fill=RGB[color])
    else:
        canvas.ellipse(_part(box, 0.36, 0.1, 0.74, 0.48), outline=RGB[color], width=width)
        canvas.rectangle(_part(box, 0.5, 0.45, 0.62, 0.88), fill=RGB[color])
        for height in (0.58, 0.76):
            canvas.rectangle(_part(box, 0.36, height, 0.5, height + 0.08), fill=RGB[color])


def _draw_door(canvas: ImageDraw.ImageDraw, box: Box, color: Color, state: str) -> None:
    width = max(1, round((box[2] - box[0]) / 14))
    if state == "open":
        canvas.rectangle(_part(box, 0.84, 0.02, 0.98, 0.98), outline=color, width=width)
        return
    fill = tuple(part * 45 // 100 for part in color) if state == "locked" else _FLOOR
    canvas.rectangle(_part(box, 0.04, 0.04, 0.96, 0.96), outline=color, width=width, fill=fill)
    if state == "locked":
        canvas.rectangle(_part(box, 0.52, 0.47, 0.76, 0.55), fill=color)
    else:
        canvas.rectangle(_part(box, 0.14, 0.14, 0.86, 0.86), outline=color, width=width)
        canvas.ellipse(_part(box, 0.66, 0.43, 0.8, 0.57), fill=color)


def _draw_part(canvas: ImageDraw.ImageDraw, box: Box, code: int) -> None:
    """Things of an abstract state: a filled square by the part it plays, or a door in the part's colour."""
    for first, color in (
        (FIRST_LOCATION_DOOR, _PART_RGB[GOAL_LOCATION]),
        (FIRST_GOAL_DOOR, _PART_RGB[GOAL_OBJECT]),
        (FIRST_PLAIN_DOOR, RGB["grey"]),
    ):
        if code >= first:
            _draw_door(canvas, box, color, ("open", "closed", "locked")[code - first])
            return
    if code == GOAL_TILE:
        canvas.rectangle(_part(box, 0.1, 0.1, 0.9, 0.9), outline=_PART_RGB[code], width=2)
    else:
        canvas.rectangle(_part(box, 0.14, 0.14, 0.86, 0.86), fill=_PART_RGB.get(code, RGB["grey"]))


def _draw_agent(canvas: ImageDraw.ImageDraw, box: Box, direction: int, carried: int) -> None:
    """A triangle that points where the agent looks; what it carries lies on its base."""
    turned = [(0.12, 0.19), (0.87, 0.5), (0.12, 0.81)]
    for _ in range(direction):  # a quarter turn clockwise, y downwards: (x, y) -> (1 - y, x)
        turned = [(1 - y, x) for x, y in turned]
    side = box[2] - box[0]
    canvas.polygon([(box[0] + x * side, box[1] + y * side) for x, y in turned], fill=_AGENT)
    if carried != EMPTY:
        across, down = 0.5 - 0.22 * STEPS[direction]
        base = _part(box, across - 0.22, down - 0.22, across + 0.22, down + 0.22)
        canvas.ellipse(base, fill=_FLOOR)
        _draw_thing(canvas, base, carried)


def _part(box: Box, left: float, top: float, right: float, bottom: float) -> Box:
    """A box in a box, in shares of its sides."""
    width, height = box[2] - box[0], box[3] - box[1]
    return box[0] + left * width, box[1] + top * height, box[0] + right * width, box[1] + bottom * height
