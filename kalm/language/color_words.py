"""An encoder that reads every colour word as the nearest of the colour words that the training sentences use.

Small text encoders know colour words badly: to all-MiniLM-L6-v2 "azure" is nearer to green than to blue. What a name
looks like was asked of people (the XKCD survey, 949 names) and is part of CSS; matplotlib brings both lists. So a word
of these lists is replaced, before the encoder reads the sentence, by the known colour that looks most like it. Nothing
in the lists is about any world of ours.

Looks are compared in CIELAB (CIE 1976) by hue, and by how grey a colour is: dark red and pale red are both red. A word
of the lists that means a thing in a sentence ("a leaf") is replaced as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.errors import DataError
from kalm.language.encoder import DEFAULT_MODEL, SentenceEncoder

_FULL_CHROMA = 30.0  # CIELAB's distance from grey above which a colour is nothing but its hue
_WORD = re.compile(r"[A-Za-z]+")
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.9505, 1.0, 1.089])  # D65


class ColorWordEncoder(SentenceEncoder):
    """The encoder underneath, on sentences in known colour words."""

    def __init__(
        self, known_colors: Sequence[str], model: str = DEFAULT_MODEL, cache_dir: str | None = "checkpoints/.cache"
    ) -> None:
        """Name the colours to read others as.

        Args:
            known_colors: Colour words that stand in the lists, such as those of the training sentences.
            model: See the encoder underneath.
            cache_dir: See the encoder underneath.

        Raises:
            DataError: If a known colour stands in no list, or none is given.
        """
        super().__init__(model, cache_dir)
        unknown = [color for color in known_colors if color not in color_vectors()]
        if unknown or not known_colors:
            raise DataError(
                f"known_colors is {list(known_colors)}; give one or more names of one word out of CSS or the XKCD "
                f"survey{f', in which {unknown} are not' if unknown else ''}"
            )
        self.known_colors = list(known_colors)

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights underneath, and how colours are read."""
        return f"{super().fingerprint} color-words-2 {' '.join(self.known_colors)}"

    def encode(self, texts: Sequence[str]) -> Tensor:
        """As the encoder underneath, of texts in known colour words."""
        return super().encode(self.in_known_colors(texts))

    def token_vectors(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As the encoder underneath, of texts in known colour words."""
        return super().token_vectors(self.in_known_colors(texts))

    def in_known_colors(self, texts: Sequence[str]) -> list[str]:
        """The texts with each colour word said as the known one that looks most like it."""
        return [_WORD.sub(lambda match: self._known(match[0]), text) for text in texts]

    def _known(self, word: str) -> str:
        vector = color_vectors().get(word.lower())
        if vector is None:
            return word
        nearness = [float(vector @ color_vectors()[color]) for color in self.known_colors]
        return self.known_colors[int(np.argmax(nearness))]


@cache
def color_vectors() -> dict[str, NDArray[np.float64]]:
    """Colour name of one word -> direction of its looks, shape (3,): towards red, towards yellow, towards grey."""
    from matplotlib.colors import CSS4_COLORS, XKCD_COLORS, to_rgb

    survey = {name.removeprefix("xkcd:"): color for name, color in XKCD_COLORS.items()}
    named = {**CSS4_COLORS, **survey}
    return {name: looks(np.array(to_rgb(color))) for name, color in named.items() if " " not in name}


def looks(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hue of a colour of sRGB, weighed by its chroma, beside how grey it is: length 1, shape (3,)."""
    _, red, yellow = lab_of_rgb(rgb)
    chroma = np.hypot(red, yellow)
    share = min(1.0, chroma / _FULL_CHROMA)
    vector = np.array([share * red / max(chroma, 1e-9), share * yellow / max(chroma, 1e-9), 1 - share])
    return np.asarray(vector / np.linalg.norm(vector))


def lab_of_rgb(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB's L*, a* and b* under D65 of a colour of sRGB, numbers in [0, 1], shape (3,)."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    part = _TO_XYZ @ linear / _WHITE
    x, y, z = np.where(part > 0.008856, np.cbrt(part), 7.787 * part + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
