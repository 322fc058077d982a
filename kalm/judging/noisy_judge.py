"""A judge that errs as often as it is told to: it stands in for an imperfect language model.

Shape letters: R rollouts, S states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import require
from kalm.core.goal import Goal
from kalm.core.rollout import Rollout
from kalm.judging.judge import Judge, Verdict, verdict

_DIGEST_BYTES = 16  # eight for the error, eight for the abstention


class NoisyJudge(Judge):
    """Another judge, some of whose answers are turned over and some withheld.

    Which ones a question decides, by a hash of seed, goal and state: asked again, in whatever company, it is answered
    alike.
    """

    def __init__(
        self,
        judge: Judge,
        false_positive_rate: float = 0.0,
        false_negative_rate: float = 0.0,
        abstention_rate: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Name the judge and how it errs.

        Args:
            judge: Who would be right.
            false_positive_rate: Share of goals that are not met of which it says that they are, in [0, 1].
            false_negative_rate: Share of goals that are met of which it says that they are not, in [0, 1].
            abstention_rate: Share of questions that it does not answer, in [0, 1].
            seed: Decides which.

        Raises:
            KalmError: If a rate is no share.
        """
        rates = {
            "false_positive_rate": false_positive_rate,
            "false_negative_rate": false_negative_rate,
            "abstention_rate": abstention_rate,
        }
        for name, rate in rates.items():
            require(0 <= rate <= 1, name, rate, "in [0, 1]")
        self.name = f"noisy_{judge.name}"
        self._judge, self._rates, self._seed = judge, rates, seed

    @property
    def provenance(self) -> dict[str, Any]:
        """Whose answers, how often they are turned over, and by which seed."""
        inner = self._judge.provenance
        oracle = {"is_oracle": True} if inner.get("is_oracle") else {}
        return {"judge": "noisy", "of": inner, **self._rates, "seed": self._seed, **oracle}

    def judge(self, goals: Sequence[Goal | None], rollouts: Sequence[Rollout]) -> Verdict:
        """Judge rollouts as the other would, but for the noise."""
        questions = (
            _goal_bytes(goal) + made.observations.tobytes() + made.actions.tobytes()
            for goal, made in zip(goals, rollouts, strict=True)
        )
        return self._disturb(self._judge.judge(goals, rollouts), questions)

    def judge_states(self, goal: Goal, states: NDArray[Any]) -> Verdict:
        """Judge states as the other would, but for the noise."""
        about = _goal_bytes(goal)
        # Texts of an array are as wide as its longest: their own bytes would depend on what else is asked.
        rows = (str(state).encode() if states.dtype.kind == "U" else state.tobytes() for state in states)
        return self._disturb(self._judge.judge_states(goal, states), (about + row for row in rows))

    def _disturb(self, said: Verdict, questions: Iterable[bytes]) -> Verdict:
        key = str(self._seed).encode()
        digests = b"".join(hashlib.blake2b(q, digest_size=_DIGEST_BYTES, key=key).digest() for q in questions)
        luck = np.frombuffer(digests, dtype="<u8").reshape(-1, 2) / 2.0**64
        rate = np.where(said.met, self._rates["false_negative_rate"], self._rates["false_positive_rate"])
        is_wrong = (luck[:, 0] < rate) & ~said.abstained
        met = said.met ^ is_wrong
        score = np.where(is_wrong, 1 - said.score, said.score)
        return verdict(met, score, said.abstained | (luck[:, 1] < self._rates["abstention_rate"]))


def _goal_bytes(goal: Goal | None) -> bytes:
    return b"" if goal is None else json.dumps(goal.to_json(), sort_keys=True).encode() + b"\n"
