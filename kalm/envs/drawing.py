"""Sentences in pictures, drawn with pillow."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]

BACKGROUND = (250, 250, 248)
_TEXT = (20, 20, 20)


@cache
def default_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which it would otherwise unpack for every picture."""
    return ImageFont.load_default(size=size)


def write_instruction(picture: Picture, instruction: str) -> Picture:
    """A copy of a picture with a sentence along its upper edge, broken into lines that fit."""
    picture = np.array(picture)
    if instruction:
        band = _band(instruction, picture.shape[1])[: len(picture)]
        picture[: len(band)] = band
    return picture


@lru_cache(maxsize=8)  # the frames of a video have one sentence
def _band(instruction: str, width: int) -> Picture:
    """What lies over the upper edge of a picture of some width, shape (height, width, 3)."""
    canvas = ImageDraw.Draw(Image.new("RGB", (width, 1)))
    font = default_font(max(9, width // 24))
    margin = max(2, width // 64)
    lines, line = [], ""
    for word in instruction.split():
        longer = f"{line} {word}".strip()
        if line and canvas.textlength(longer, font=font) > width - 2 * margin:
            lines.append(line)
            longer = word
        line = longer
    text = "\n".join([*lines, line])
    _, _, _, bottom = canvas.multiline_textbbox((margin, margin), text, font=font)
    band = Image.new("RGB", (width, int(bottom) + margin + 1), BACKGROUND)
    ImageDraw.Draw(band).multiline_text((margin, margin), text, font=font, fill=_TEXT)
    return np.asarray(band)


def write_page(text: str, size: int) -> Picture:
    """A text on a blank picture, shape (size, size, 3)."""
    return write_instruction(np.full((size, size, 3), BACKGROUND, dtype=np.uint8), text)
