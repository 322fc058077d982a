"""Token vectors that also say what colour a word names, by public lists of colour names.

Small text encoders know colour words badly: to all-MiniLM-L6-v2 "azure" is nearer to green than to blue. What a name
looks like was asked of people (the XKCD survey, 949 names) and is part of CSS; matplotlib brings both lists. So each
token of such a name gets the colour's coordinates in CIELAB (CIE 1976) beside its vector. Nothing in the lists is about
any world of ours.

Shape letters: n texts, L tokens of the longest text, E numbers in a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.language.encoder import SentenceEncoder

NUM_COLOR_NUMBERS = 4  # 1 for a colour word, then its coordinates
_SCALE = 2.5  # some eight times the spread of a vector's numbers, so that 4 of them are not drowned by hundreds
_LAB_UNIT = 50.0  # CIELAB's coordinates reach about twice as far
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.9505, 1.0, 1.089])  # D65


class ColorWordEncoder(SentenceEncoder):
    """The encoder underneath, with four more numbers for each token; sentence vectors stay as they are."""

    @property
    def token_size(self) -> int:
        """Numbers in a token's vector."""
        return self.embedding_size + NUM_COLOR_NUMBERS

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights underneath, and that colours stand beside them."""
        return f"{super().fingerprint} color-words-1"

    def token_vectors(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As the encoder underneath, float32 of shape (n, L, E + 4), and which tokens are real."""
        vectors, attention_mask = super().token_vectors(texts)
        colors = torch.zeros(*attention_mask.shape, NUM_COLOR_NUMBERS)
        for row, text in enumerate(texts):
            encoded = self.tokenizer(text)
            for place, word in enumerate(encoded.word_ids()):
                if word is not None:
                    span = encoded.word_to_chars(word)
                    color = self._colors.get(text[span.start : span.end].lower())
                    if color is not None:
                        colors[row, place] = color
        return torch.cat([vectors, colors], dim=-1), attention_mask

    @cached_property
    def _colors(self) -> dict[str, Tensor]:
        """Word -> its four numbers; names of several words are left out."""
        from matplotlib.colors import CSS4_COLORS, XKCD_COLORS, to_rgb

        survey = {name.removeprefix("xkcd:"): color for name, color in XKCD_COLORS.items()}
        named = {name: np.array(to_rgb(color)) for name, color in {**CSS4_COLORS, **survey}.items() if " " not in name}
        return {
            name: _SCALE * torch.tensor([1.0, *lab_of_rgb(rgb) / _LAB_UNIT], dtype=torch.float32)
            for name, rgb in named.items()
        }


def lab_of_rgb(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB's L*, a* and b* under D65 of a colour of sRGB, numbers in [0, 1], shape (3,)."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    part = _TO_XYZ @ linear / _WHITE
    x, y, z = np.where(part > 0.008856, np.cbrt(part), 7.787 * part + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
