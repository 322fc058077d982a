"""Grids that one agent walks on, as a learner of local laws sees them, and what can be asked about a goal.

An observation of such a world is uint8 of shape (W, H, 2). Plane 0 holds a code of what is on each tile, below
``num_codes``. Plane 1 is 0 but for the agent's tile, which holds 1 + direction + 4 * the code of what it carries.
Directions are 0 for x + 1, 1 for y + 1, 2 for x - 1 and 3 for y - 1. What the codes mean is the domain's business.

Shape letters: W columns, H rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AgentGrid:
    """Such a world, and the questions whose answers sum a goal up.

    Attributes:
        num_codes: Codes of tiles, from 0 on.
        outside: The code to show where the grid ends.
        max_size: Most columns and rows that such a world may have: a student can go to larger grids than its own.
        questions: Question about a goal -> how many answers it has.
        answers: The answer to each question, by the JSON form of a goal.
    """

    num_codes: int
    outside: int
    max_size: int
    questions: Mapping[str, int]
    answers: Callable[[Mapping[str, Any]], dict[str, int]]
