"""Instructions of the four splits, from the JSON files beside this one."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from kalm.core.goal import InstructedGoal
from kalm.envs.metaworld.goals import HORIZON, TaskGoal

# From what the data hold to what they never showed (KALM, section 4).
GOAL_SPLITS = ("train", "rephrase", "easy", "hard")


@cache
def instructed_goals(goal_split: str, max_steps: int = HORIZON) -> tuple[InstructedGoal, ...]:
    """Every instruction of a split, in the order of the data file, with the time that its goals are given."""
    path = Path(__file__).parent / "instructions" / f"{goal_split}.json"
    sentences = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        InstructedGoal(TaskGoal(task, max_steps), sentence, goal_split)
        for task, texts in sentences.items()
        for sentence in texts
    )
