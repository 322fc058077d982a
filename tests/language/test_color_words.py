"""Tokens of colour words carry the colour that people see in them; other tokens carry none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kalm.language.color_words import ColorWordEncoder, lab_of_rgb
from kalm.language.encoder import SentenceEncoder


def test_known_colours_in_cielab() -> None:
    """White has lightness 100 and no hue; sRGB's red is (53.2, 80.1, 67.2)."""
    assert lab_of_rgb(np.array([1.0, 1.0, 1.0])) == pytest.approx([100, 0, 0], abs=0.05)
    assert lab_of_rgb(np.array([1.0, 0.0, 0.0])) == pytest.approx([53.2, 80.1, 67.2], abs=0.1)


def test_vectors_stand_beside_those_of_the_encoder() -> None:
    """The first numbers and the sentence vectors are the encoder's; tokens that name no colour have four zeros."""
    texts = ["go to an azure ball", "open a door"]
    encoder, plain = ColorWordEncoder(cache_dir=None), SentenceEncoder(cache_dir=None)

    vectors, mask = encoder.token_vectors(texts)

    expected, expected_mask = plain.token_vectors(texts)
    assert torch.equal(mask, expected_mask)
    assert torch.equal(vectors[..., :-4], expected)
    assert vectors.shape[-1] == encoder.token_size == plain.embedding_size + 4
    words = encoder.tokenizer(texts[0]).word_ids()
    is_azure = torch.tensor([word == 3 for word in words])
    assert torch.equal(vectors[0, :, -4] > 0, is_azure)
    assert not vectors[1, :, -4:].any()
    assert torch.equal(encoder.encode(texts), plain.encode(texts))


def test_a_name_lies_near_what_it_is_a_shade_of() -> None:
    """Of the basic colours blue is nearest to azure, red to crimson, purple to violet, each pair by its own tokens."""
    encoder = ColorWordEncoder(cache_dir=None)
    basic = ["red", "green", "blue", "purple", "yellow", "grey"]
    vectors, _ = encoder.token_vectors([*basic, "sapphire", "crimson", "plum"])
    colors = vectors[:, 1, -4:]  # behind the token that begins a text

    nearest = torch.cdist(colors[6:], colors[:6]).argmin(dim=1)

    assert [basic[place] for place in nearest.tolist()] == ["blue", "red", "purple"]
