"""What the language model is asked, one prompt a grounding task (KALM, section 3.1), in kalm's own words.

A prompt is plain text in front of a rollout's tokens. Instructions are put in by replacing one marker, never by a
template language, so that braces or markup in a user's sentence stay what they are.
"""

from __future__ import annotations

import hashlib

_INSTRUCTION = "<instruction>"

GENERATION = "Imagine how to do this: <instruction>"
DYNAMICS = "Predict what every action changes."
EXPLANATION = "Explain which instruction this rollout follows."
UNSEEN_EXPLANATION = "What was somebody told to do here?"  # for evaluation only: training never shows it


def generation_prompt(instruction: str) -> str:
    """Prompt of rollout generation: goal in, rollout out."""
    return GENERATION.replace(_INSTRUCTION, instruction)


def prompts_hash() -> str:
    """SHA-256 of the prompts above; kept with every imagined rollout."""
    return hashlib.sha256("\n".join((GENERATION, DYNAMICS, EXPLANATION)).encode()).hexdigest()
