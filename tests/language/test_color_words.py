"""A colour word is read as the known colour that people see in it; everything else is the encoder's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kalm.core.errors import DataError
from kalm.language.color_words import ColorWordEncoder, lab_of_rgb
from kalm.language.encoder import SentenceEncoder

BASIC = ["red", "green", "blue", "purple", "yellow", "grey"]


def test_known_colours_in_cielab() -> None:
    """White has lightness 100 and no hue; sRGB's red is (53.2, 80.1, 67.2)."""
    assert lab_of_rgb(np.array([1.0, 1.0, 1.0])) == pytest.approx([100, 0, 0], abs=0.05)
    assert lab_of_rgb(np.array([1.0, 0.0, 0.0])) == pytest.approx([53.2, 80.1, 67.2], abs=0.1)


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("go to a Sapphire ball", "go to a blue ball"),
        ("put a maroon key next to a plum box", "put a red key next to a purple box"),
        ("open a slate door", "open a grey door"),
        ("lift a mustard box", "lift a yellow box"),
        ("fetch a moss-coloured key", "fetch a green-coloured key"),
        ("pick up a grey ball", "pick up a grey ball"),
        ("go to the tile (3, 4)", "go to the tile (3, 4)"),
    ],
)
def test_a_colour_is_read_as_the_known_one_that_looks_like_it(said: str, read: str) -> None:
    """By hue, whatever the lightness; greys are grey; other words stay."""
    assert ColorWordEncoder(BASIC, cache_dir=None).in_known_colors([said]) == [read]


def test_vectors_are_those_of_the_sentence_in_known_colours() -> None:
    """Both vectors of the sentence and of its tokens; the fingerprint tells the two encoders apart."""
    encoder, plain = ColorWordEncoder(BASIC, cache_dir=None), SentenceEncoder(cache_dir=None)

    vectors, mask = encoder.token_vectors(["go to an indigo ball", "open a sapphire door"])

    expected, expected_mask = plain.token_vectors(["go to an purple ball", "open a blue door"])
    assert torch.equal(mask, expected_mask)
    assert torch.equal(vectors, expected)
    assert torch.equal(encoder.encode(["open a sapphire door"]), plain.encode(["open a blue door"]))
    assert encoder.fingerprint != plain.fingerprint != ColorWordEncoder(["red"], cache_dir=None).fingerprint


@pytest.mark.parametrize("known", [[], ["red", "ball"]])
def test_a_known_colour_stands_in_the_lists(known: list[str]) -> None:
    """What is no colour word is refused, and so is none at all."""
    with pytest.raises(DataError, match="known_colors"):
        ColorWordEncoder(known)
