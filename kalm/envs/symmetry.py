"""Symmetries: other names for the same things, which make another true rollout out of a recorded one.

Mirror images are written in the same form: numbers and sentences change sides instead of names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Symmetry:
    """One way to exchange things that the world cannot tell apart, such as balls that differ in colour only.

    Shape letters: O numbers in an observation, A discrete actions or numbers in a continuous action.

    Attributes:
        observation_order: The observation becomes ``observation[..., observation_order]``, int64 of shape (O,).
        action_of: A discrete action becomes ``action_of[action]``, int64 of shape (A,), and a continuous one
            ``action_of * action``, float32 of shape (A,).
        word_of: What each word becomes that changes.
        observation_sign: Multiplies the observation afterwards, float32 of shape (O,); 1 by default.
    """

    observation_order: NDArray[np.int64]
    action_of: NDArray[np.int64] | NDArray[np.float32]
    word_of: Mapping[str, str]
    observation_sign: NDArray[np.float32] | None = None

    @property
    def signs(self) -> NDArray[np.float32]:
        """``observation_sign``, or the ones that it stands for."""
        sign = self.observation_sign
        return np.ones(len(self.observation_order), np.float32) if sign is None else sign

    def text(self, text: str) -> str:
        """A sentence about the rollout, every word exchanged at once."""
        return texts_under([text], [self])[0][0]


def texts_under(texts: Sequence[str], symmetries: Sequence[Symmetry]) -> list[list[str]]:
    """Every sentence under each symmetry in turn; it is searched for names once, for there may be a hundred of them."""
    names = sorted({name for symmetry in symmetries for name in symmetry.word_of}, key=len, reverse=True)
    if not names:
        return [list(texts) for _ in symmetries]
    name = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    split = [name.split(text) for text in texts]
    return [[_joined(parts, symmetry.word_of) for parts in split] for symmetry in symmetries]


def _joined(parts: Sequence[str], word_of: Mapping[str, str]) -> str:
    """Put a sentence together again from what lies between names, and names: every second part."""
    return "".join(word_of.get(part, part) if place % 2 else part for place, part in enumerate(parts))
