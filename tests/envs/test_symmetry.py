"""Sentences under other names."""

from __future__ import annotations

import numpy as np

from kalm.envs.symmetry import Symmetry, texts_under

NOTHING = np.arange(1)


def _renaming(**word_of: str) -> Symmetry:
    return Symmetry(
        NOTHING, NOTHING, {name.replace("_", " "): word.replace("_", " ") for name, word in word_of.items()}
    )


def test_names_are_exchanged_at_once_and_only_whole_words():
    """Red and blue change places; a reddish thing does not, nor what stands at the ends."""
    swap = _renaming(red="blue", blue="red")
    assert swap.text("red by blue, reddish; blue") == "blue by red, reddish; red"
    assert swap.text("") == ""
    assert _renaming().text("red") == "red"


def test_each_symmetry_knows_its_own_names_only():
    """Three symmetries of two texts; the second leaves green alone, the third changes nothing."""
    cycle, swap, same = _renaming(red="blue", blue="green", green="red"), _renaming(red="blue", blue="red"), _renaming()
    assert texts_under(["red green", "blue"], [cycle, swap, same]) == [
        ["blue red", "green"],
        ["blue green", "red"],
        ["red green", "blue"],
    ]
    assert texts_under(["red"], []) == []


def test_of_two_names_the_longer_one_counts():
    """The back is a word of its own inside the back side."""
    sides = _renaming(back="front", back_side="front side", front="back", front_side="back side")
    assert sides.text("to the back side, at the back") == "to the front side, at the front"
