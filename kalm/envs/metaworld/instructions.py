"""Instructions of the four splits, from the JSON files beside this one, and the key-word test of texts."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from kalm.envs.base import Goal, InstructedGoal
from kalm.envs.metaworld.goals import TaskGoal
from kalm.envs.metaworld.key_words import KEY_WORDS

# From what the data hold to what they never showed (KALM, section 4).
GOAL_SPLITS = ("train", "rephrase", "easy", "hard")


@cache
def instructed_goals(goal_split: str) -> tuple[InstructedGoal, ...]:
    """Every instruction of a split, in the order of the data file."""
    path = Path(__file__).parent / "instructions" / f"{goal_split}.json"
    sentences = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        InstructedGoal(TaskGoal(task), sentence, goal_split) for task, texts in sentences.items() for sentence in texts
    )


@cache
def first_instructions() -> dict[Goal, str]:
    """The first built-in instruction of every goal."""
    first: dict[Goal, str] = {}
    for split in GOAL_SPLITS:
        for instructed in instructed_goals(split):
            first.setdefault(instructed.goal, instructed.instruction)
    return first


def explains(goal: TaskGoal, text: str) -> bool:
    """Whether a text describes a task, by its key words (KALM, figure 7).

    The thing and what is done to it must be named, and nothing that makes it another task.
    """
    return KEY_WORDS[goal.task].describe(set(re.findall(r"[a-z]+", text.lower())))
