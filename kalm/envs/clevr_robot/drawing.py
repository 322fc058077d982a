"""Pictures of the table from above, drawn with pillow: they need neither GL nor a simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kalm.envs.clevr_robot.layout import BALL_RADIUS, COLORS, RGB, WALL_X, WALL_Y
from kalm.envs.drawing import BACKGROUND, Picture, write_instruction

_VIEW_X = (-0.7, 0.7)  # the square of the table that a picture shows
_VIEW_Y = (-0.5, 0.9)
_OVERSAMPLING = 2  # pillow draws hard edges: draw larger, then shrink
_TABLE = (226, 224, 218)
_EDGE = (60, 60, 60)


def draw_observation(observation: NDArray[Any], instruction: str = "", size: int = 256) -> Picture:
    """Draw ball centres, shape (10,), as seen from above, +y up, with the instruction on top, see ``Domain.draw``."""
    pixels = size * _OVERSAMPLING
    image = Image.new("RGB", (pixels, pixels), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    scale = pixels / (_VIEW_X[1] - _VIEW_X[0])

    def to_pixel(x: float, y: float) -> tuple[float, float]:
        return (x - _VIEW_X[0]) * scale, (_VIEW_Y[1] - y) * scale

    width = max(1, pixels // 200)
    corners = [to_pixel(WALL_X[0], WALL_Y[1]), to_pixel(WALL_X[1], WALL_Y[0])]
    canvas.rectangle(corners, fill=_TABLE, outline=_EDGE, width=width)
    radius = BALL_RADIUS * scale
    for color, (x, y) in zip(COLORS, np.asarray(observation, dtype=float).reshape(-1, 2), strict=True):
        center_x, center_y = to_pixel(x, y)
        box = (center_x - radius, center_y - radius, center_x + radius, center_y + radius)
        canvas.ellipse(box, fill=tuple(round(255 * part) for part in RGB[color]), outline=_EDGE, width=width)
    image = image.reduce(_OVERSAMPLING)
    return write_instruction(np.asarray(image), instruction)
