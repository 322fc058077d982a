"""Pictures of the table from above, drawn with pillow: they need neither GL nor a simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kalm.envs.clevr_robot.layout import BALL_RADIUS, COLORS, RGB, WALL_X, WALL_Y

Picture = NDArray[np.uint8]

_VIEW_X = (-0.7, 0.7)  # the square of the table that a picture shows
_VIEW_Y = (-0.5, 0.9)
_OVERSAMPLING = 2  # pillow draws hard edges: draw larger, then shrink
_BACKGROUND = (250, 250, 248)
_TABLE = (226, 224, 218)
_EDGE = (60, 60, 60)
_TEXT = (20, 20, 20)


def draw_observation(observation: NDArray[Any], instruction: str = "", size: int = 256) -> Picture:
    """Draw ball centres as seen from above, +y up, with the instruction on top.

    Args:
        observation: Shape (10,).
        instruction: Sentence to write; nothing if empty.
        size: Pixels along each side.

    Returns:
        Picture, shape (size, size, 3).
    """
    pixels = size * _OVERSAMPLING
    image = Image.new("RGB", (pixels, pixels), _BACKGROUND)
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
    image = image.resize((size, size), Image.Resampling.LANCZOS)
    return write_instruction(np.asarray(image), instruction)


def write_instruction(picture: Picture, instruction: str) -> Picture:
    """A copy of a picture with a sentence along its upper edge, broken into lines that fit."""
    if not instruction:
        return np.array(picture)
    image = Image.fromarray(picture)
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(9, image.width // 24))
    margin = max(2, image.width // 64)
    lines, line = [], ""
    for word in instruction.split():
        longer = f"{line} {word}".strip()
        if line and canvas.textlength(longer, font=font) > image.width - 2 * margin:
            lines.append(line)
            longer = word
        line = longer
    text = "\n".join([*lines, line])
    _, _, _, bottom = canvas.multiline_textbbox((margin, margin), text, font=font)
    canvas.rectangle((0, 0, image.width, bottom + margin), fill=_BACKGROUND)
    canvas.multiline_text((margin, margin), text, font=font, fill=_TEXT)
    return np.array(image)
