"""What two sentences have in common beyond single words: words in a row, whatever fills the gaps of a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kalm.envs.clevr_robot.layout import COLORS

RUN_LENGTH = 5  # words


def words(sentence: str) -> list[str]:
    """In lower case, without the colours, which fill gaps in patterns."""
    return [word for word in re.findall(r"[a-z'-]+", sentence.lower()) if word not in COLORS]


def runs(sentence: str) -> Iterator[tuple[str, ...]]:
    """Every so many words in a row, or all words of a shorter sentence."""
    found = words(sentence)
    for first in range(max(len(found) - RUN_LENGTH, 0) + 1):
        yield tuple(found[first : first + RUN_LENGTH])
