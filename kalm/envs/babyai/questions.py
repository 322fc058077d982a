"""What an instruction is about, as a few questions with few answers: the answer of TEDUO's abstraction (section 3.1.1).

Which task it is, of which kind and colour its first and its second thing are, and which column and row it names. A
student that has to answer from the sentence alone learns to read; it is never shown the answers when it acts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kalm.envs.agent_grid import AgentGrid
from kalm.envs.babyai.goals import GOAL_CLASSES, goal_from_json
from kalm.envs.babyai.layout import COLORS, KINDS, NUM_CODES, WALL

_THINGS = ("first", "second")
_TASKS = tuple(GOAL_CLASSES)
MAX_SIZE = 64  # columns and rows, so that one student serves grids of all the sizes in TEDUO's tables


def answers(goal: Mapping[str, Any]) -> dict[str, int]:
    """The answers for a goal in its JSON form; 0 is that there is none, but for the task."""
    parsed = goal_from_json(goal)
    found = {"task": _TASKS.index(parsed.task), **dict.fromkeys(("x", "y"), 0)}
    for place, name in enumerate(_THINGS):
        thing = parsed.things[place] if place < len(parsed.things) else None
        found[f"{name}_kind"] = 1 + KINDS.index(thing.kind) if thing else 0
        found[f"{name}_color"] = 1 + COLORS.index(thing.color) if thing and thing.color else 0
    return found | {name: value for name, value in vars(parsed).items() if name in ("x", "y")}


_QUESTIONS = {
    "task": len(_TASKS),
    "x": MAX_SIZE,
    "y": MAX_SIZE,
    **{f"{name}_kind": 1 + len(KINDS) for name in _THINGS},
    **{f"{name}_color": 1 + len(COLORS) for name in _THINGS},
}
AGENT_GRID = AgentGrid(NUM_CODES, WALL, MAX_SIZE, _QUESTIONS, answers)
