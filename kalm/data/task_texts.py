"""What the language model reads and writes around a rollout, for each grounding task (KALM, section 3.1)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kalm.language.prompts import DYNAMICS, EXPLANATIONS, generation_prompt
from kalm.store.reader import InstructionRow


class TaskTexts(NamedTuple):
    """Texts of some rollouts, in their order.

    Attributes:
        prompts: Prompts of each rollout; it is shown behind a random one each time.
        answers: Text to be written behind each; empty but for explanation.
    """

    prompts: Sequence[Sequence[str]]
    answers: Sequence[str]


def generation_texts(rows: Sequence[InstructionRow]) -> TaskTexts:
    """Goal in, rollout out: the prompt holds the rollout's own instruction."""
    return TaskTexts([[generation_prompt(row.instruction)] for row in rows], [""] * len(rows))


def dynamics_texts(num_rollouts: int) -> TaskTexts:
    """State and action in, next state out: nobody says what for."""
    return TaskTexts([[DYNAMICS]] * num_rollouts, [""] * num_rollouts)


def explanation_texts(answers: Sequence[str], num_prompts: int) -> TaskTexts:
    """Rollout in, goal out: the same question in so many wordings."""
    return TaskTexts([EXPLANATIONS[:num_prompts]] * len(answers), answers)


def shortest_instructions(
    table: Sequence[InstructionRow], rows: Sequence[InstructionRow], training_split: str
) -> list[str]:
    """For each of ``rows`` the shortest instruction of the training split that ``table`` has for its goal."""
    shortest: dict[str, str] = {}
    of_training = (row for row in table if row.goal_split == training_split)
    for row in sorted(of_training, key=lambda row: (len(row.instruction), row.instruction)):
        shortest.setdefault(_key(row.goal), row.instruction)
    return [shortest[_key(row.goal)] for row in rows]


def _key(goal: Mapping[str, Any]) -> str:
    return json.dumps(goal, sort_keys=True)
