"""Relabellings: other names for the same things, which make another true rollout out of a recorded one.

Mirror images are written in the same form: numbers and sentences change sides instead of names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Relabelling:
    """One way to exchange things that the world cannot tell apart, such as balls that differ in colour only.

    Shape letters: O numbers in an observation, A discrete actions or numbers in a continuous action.

    Attributes:
        observation_order: The relabelled observation is ``observation[..., observation_order]``, int64 of shape (O,).
        action_of: The relabelled action is ``action_of[action]`` of discrete actions, int64 of shape (A,), and
            ``action_of * action`` of continuous ones, float32 of shape (A,).
        word_of: The relabelled word for each word that changes.
        observation_sign: Multiplies the relabelled observation, float32 of shape (O,); 1 by default.
    """

    observation_order: NDArray[np.int64]
    action_of: NDArray[np.int64] | NDArray[np.float32]
    word_of: Mapping[str, str]
    observation_sign: NDArray[np.float32] | None = None

    @property
    def signs(self) -> NDArray[np.float32]:
        """``observation_sign``, or the ones that it stands for."""
        return (
            np.ones(len(self.observation_order), np.float32) if self.observation_sign is None else self.observation_sign
        )

    def text(self, text: str) -> str:
        """A sentence about the relabelled rollout: every word exchanged at once."""
        if not self.word_of:
            return text
        names = "|".join(re.escape(word) for word in self.word_of)
        return re.sub(rf"\b({names})\b", lambda found: self.word_of[found[0]], text)
