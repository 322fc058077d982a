"""Sentences in pictures, drawn with pillow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]

BACKGROUND = (250, 250, 248)
_TEXT = (20, 20, 20)


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
    canvas.rectangle((0, 0, image.width, bottom + margin), fill=BACKGROUND)
    canvas.multiline_text((margin, margin), text, font=font, fill=_TEXT)
    return np.array(image)


def write_page(text: str, size: int) -> Picture:
    """A text on a blank picture, shape (size, size, 3)."""
    return write_instruction(np.full((size, size, 3), BACKGROUND, dtype=np.uint8), text)
