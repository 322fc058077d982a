"""What the language model is asked, a prompt for each grounding task (KALM, section 3.1), in kalm's own words.

Explanation has several, where the paper has one: a model that was asked in one way only understands no other.

A prompt is plain text in front of a rollout's tokens. Instructions are put in by replacing one marker, never by a
template language, so that braces or markup in a user's sentence stay what they are.
"""

from __future__ import annotations

import hashlib

_INSTRUCTION = "<instruction>"

GENERATION = "Imagine how to do this: <instruction>"
DYNAMICS = "Predict what every action changes."
EXPLANATION = "Explain which instruction this rollout follows."
EXPLANATIONS = (
    EXPLANATION,
    "Say in one sentence what these steps are meant to achieve.",
    "Which command does this rollout carry out?",
    "Here is what happened; what was the task?",
    "Name the goal that was reached.",
    "Describe the purpose of these actions.",
    "What did the person who did this want?",
    "Tell me how you would have asked for that.",
)
SUB_GOAL = "Say what is left to do of this: <instruction>"
UNSEEN_EXPLANATION = "What was somebody told to do here?"  # for evaluation only: training never shows it


def generation_prompt(instruction: str) -> str:
    """Prompt of rollout generation: goal in, rollout out."""
    return GENERATION.replace(_INSTRUCTION, instruction)


def sub_goal_prompt(instruction: str) -> str:
    """Prompt of the next part: a goal of several parts and a state in, the part to pursue out."""
    return SUB_GOAL.replace(_INSTRUCTION, instruction)


def prompts_hash() -> str:
    """SHA-256 of the prompts of training; kept with every imagined rollout."""
    return hashlib.sha256("\n".join((GENERATION, DYNAMICS, SUB_GOAL, *EXPLANATIONS)).encode()).hexdigest()
