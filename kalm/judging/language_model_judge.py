"""A language model as the judge: shown a state in words, it says whether a goal is met (TEDUO, section 3.1.2).

It answers True, False, or NA where it is in doubt. Either the three answers are scored, and it abstains where True and
False are nearly as likely; or it reasons in writing, and the last of its words that is one of the three counts.

Differences from the paper: (1) scores in place of reasoning, by default, which need one token a question; (2) it
abstains by a margin, and not only where it says so; (3) prompts of our own.

Shape letters: R rollouts, S states.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import require
from kalm.core.goal import Goal
from kalm.core.rollout import Rollout
from kalm.envs.base import Domain
from kalm.judging.judge import Judge, Verdict, judge_by_states, verdict
from kalm.language.language_model import LanguageModel

ANSWERS = ("True", "False", "NA")
_TASK = "You say whether a goal is met in one state of a world."
_SCORED = (
    "Answer True if the goal is met in that state, False if it is not, and NA if the state does not tell. Write this "
    "one word and nothing else."
)
_REASONED = (
    "First write down what must hold so that the goal is met. Then write down what the state says about it, number by "
    "number. Rely on nothing that the state does not say. End with a line that has one word: True if the goal is met, "
    "False if it is not, NA if the state does not tell."
)
_LAST = re.compile(rf"\b({'|'.join(ANSWERS)})\b")


class LanguageModelJudge(Judge):
    """Asks a language model about each state."""

    def __init__(
        self,
        model: LanguageModel,
        domain: Domain,
        margin: float = 1.0,
        is_reasoning: bool = False,
        max_tokens: int = 512,
        name: str = "language_model",
    ) -> None:
        """Name the model and the world.

        Args:
            model: Who is asked.
            domain: The world, one that tells its states in words.
            margin: Difference of the log-probabilities of True and False, in nats, below which it abstains; 0 abstains
                only where NA is likeliest.
            is_reasoning: Have it reason in writing before it answers, as the paper does; ``margin`` says nothing then.
            max_tokens: Of its reasoning; where they do not suffice it abstains.
            name: Of the label that it writes.

        Raises:
            KalmError: If a number is out of range.
            DataError: If the world does not tell its states in words.
        """
        require(margin >= 0, "margin", margin, "0 or more, in nats")
        require(max_tokens >= 1, "max_tokens", max_tokens, "at least 1")
        self.name = name
        self._model, self._domain, self._margin = model, domain, margin
        self._is_reasoning, self._max_tokens = is_reasoning, max_tokens
        self._told = f"{_TASK} {domain.rules_in_words}\n{_REASONED if is_reasoning else _SCORED}"

    @property
    def provenance(self) -> dict[str, Any]:
        """Which model was asked, in what words, and how its answers are read."""
        read_by = {"max_tokens": self._max_tokens} if self._is_reasoning else {"margin": self._margin}
        asked = {"domain": self._domain.name, "prompt_sha256": hashlib.sha256(self._told.encode()).hexdigest()}
        how = {"is_reasoning": self._is_reasoning, **read_by}
        return {"judge": "language_model", "model": self._model.identity, **asked, **how}

    def judge(self, goals: Sequence[Goal | None], rollouts: Sequence[Rollout]) -> Verdict:
        """Whether the goal is met after some step."""
        return judge_by_states(self, goals, rollouts)

    def judge_states(self, goal: Goal, states: NDArray[Any]) -> Verdict:
        """Ask about each state; it abstains on goals that have no sentence."""
        instruction = self._domain.instruction_for(goal)
        if not instruction or not len(states):
            nothing = np.zeros(len(states), dtype=np.bool_)
            return verdict(nothing, abstained=~nothing)
        conversations = [self._conversation(state, instruction) for state in states]
        return self._reasoned(conversations) if self._is_reasoning else self._scored(conversations)

    def _conversation(self, state: NDArray[Any], instruction: str) -> list[dict[str, str]]:
        asked = f"State:\n{self._domain.state_in_words(state)}\nGoal: {instruction}"
        return [{"role": "system", "content": self._told}, {"role": "user", "content": asked}]

    def _scored(self, conversations: Sequence[list[dict[str, str]]]) -> Verdict:
        """The score is the probability of True among True and False."""
        scores = self._model.score(conversations, ANSWERS)
        margin = scores[:, 0] - scores[:, 1]
        is_in_doubt = (np.abs(margin) < self._margin) | (scores.argmax(axis=1) == ANSWERS.index("NA"))
        return verdict(margin > 0, 1 / (1 + np.exp(-np.clip(margin, -50, 50))), is_in_doubt)

    def _reasoned(self, conversations: Sequence[list[dict[str, str]]]) -> Verdict:
        """Sure or in doubt, and nothing between; a text that broke off before its end is no answer."""
        replies = self._model.generate(conversations, max_tokens=self._max_tokens)
        said = ["" if reply.is_cut else _last_answer(reply.text) for (reply,) in replies]
        return verdict([word == "True" for word in said], abstained=[word not in ("True", "False") for word in said])


def _last_answer(text: str) -> str:
    """The last of the three words in a text, or nothing."""
    found = _LAST.findall(text)
    return found[-1] if found else ""
