"""The chain in words, and a rule by which a scripted language model judges it."""

from __future__ import annotations

from kalm.core.goal import Array
from kalm.language.language_model import Question, Reply
from tests.chain_domain import CELL_NAMES, ChainDomain


class ToldChain(ChainDomain):
    """Says in which cell one is."""

    rules_in_words = "A goal is met in the cell that it names."

    def state_in_words(self, observation: Array) -> str:
        """Such as ``You are at the left end``."""
        return f"You are at the {CELL_NAMES[int(observation.argmax())]}."


def says_true_where_named(question: Question) -> Reply:
    """True is e times e as likely as False where the goal names the cell that the state names, and else the reverse."""
    state, _, goal = question.messages[-1][1].partition("\nGoal: ")
    is_named = any(name in state and name in goal for name in CELL_NAMES)
    return Reply(scores=(-0.5, -2.5, -9.0) if is_named else (-2.5, -0.5, -9.0), num_tokens=5)
