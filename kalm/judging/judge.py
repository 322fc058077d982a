"""What a judge is, what it says (whether a goal is met, how sure it is of it, or that it will not say), and the oracle.

KALM's filter and TEDUO's rewards are both what some judge wrote. The rule of the domain is one judge, a language model
another; a learned model of the dynamics is a third kind, which knows nothing of goals but vetoes rollouts that no world
would show.

Shape letters: R rollouts, or S states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kalm.core.errors import DataError
from kalm.core.goal import Goal
from kalm.core.rollout import Rollout
from kalm.envs.base import Domain

DOMAIN_RULE = "domain_rule"


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a judge said of R rollouts, or of S states.

    Attributes:
        met: Whether the goal is met, bool; False where the judge abstained. For a veto: whether nothing was marked.
        score: How sure the judge is that it is met, float32 in [0, 1]; 0 where it abstained.
        abstained: Where the judge would not say, bool.
        num_marked: Of a veto alone: steps that it holds against the rollout, int32; for one that judges rollouts as a
            whole 0 or 1.
    """

    met: NDArray[np.bool_]
    score: NDArray[np.float32]
    abstained: NDArray[np.bool_]
    num_marked: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        """Refuse what is no verdict.

        Raises:
            DataError: If shapes differ, a type is another, or a score is not in [0, 1]; all problems are named.
        """
        expected = {"met": np.bool_, "score": np.float32, "abstained": np.bool_, "num_marked": np.int32}
        problems = [
            f"{field}: {array.dtype} of shape {array.shape}, expected {np.dtype(dtype)} of shape {(len(self),)}"
            for field, dtype in expected.items()
            if (array := getattr(self, field)) is not None and (array.dtype != dtype or array.shape != (len(self),))
        ]
        if not problems and not ((self.score >= 0) & (self.score <= 1)).all():
            problems.append("score: not in [0, 1] everywhere")
        if not problems and (self.abstained & (self.met | (self.score > 0))).any():
            problems.append("abstained: True where the goal is said to be met, or a score is given")
        if problems:
            raise DataError("this is no verdict; mend the judge:\n  " + "\n  ".join(problems))

    def __len__(self) -> int:
        """How many rollouts or states were judged."""
        return len(self.met)


def verdict(
    met: ArrayLike,
    score: ArrayLike | None = None,
    abstained: ArrayLike | None = None,
    num_marked: ArrayLike | None = None,
) -> Verdict:
    """A verdict whose score is 1 or 0 unless it is given, and that abstains nowhere unless told; all of one shape.

    Where ``abstained`` is True, ``met`` and ``score`` need not be sensible.
    """
    met = np.asarray(met, dtype=np.bool_)
    abstained = np.zeros_like(met) if abstained is None else np.asarray(abstained, dtype=np.bool_)
    score = np.asarray(met if score is None else score, dtype=np.float32)
    marked = None if num_marked is None else np.asarray(num_marked, dtype=np.int32)
    return Verdict(met & ~abstained, np.where(abstained, np.float32(0), score), abstained, marked)


class Judge(ABC):
    """Says whether goals are met. Equal questions get equal answers.

    Attributes:
        name: Of the label that it writes, a folder name; of a veto: what it marks.
        is_veto: Whether it marks what is implausible, whatever the goal, rather than saying that a goal is met. Filters
            count its label among the plausibility flags.
    """

    name: str
    is_veto: ClassVar[bool] = False

    @property
    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Plain JSON types that decide its answers: kind of judge, weights, prompt, settings; kept with its labels."""

    @abstractmethod
    def judge(self, goals: Sequence[Goal | None], rollouts: Sequence[Rollout]) -> Verdict:
        """Judge each rollout by one goal.

        Args:
            goals: One for each rollout; who needs a goal abstains where there is none.
            rollouts: R rollouts, none of them empty.

        Returns:
            Whether the goal was met after some step, shape (R,).
        """

    def judge_states(self, goal: Goal, states: NDArray[Any]) -> Verdict:
        """Judge single states by one goal; who cannot tell from a state alone abstains.

        Args:
            goal: What should be true.
            states: S observations, as ``Rollout.observations`` has them.
        """
        nothing = np.zeros(len(states), dtype=np.bool_)
        return verdict(nothing, abstained=~nothing)


def judge_by_states(judge: Judge, goals: Sequence[Goal | None], rollouts: Sequence[Rollout]) -> Verdict:
    """Whether each rollout's goal is met after some step, by who judges single states: as sure as of the surest one."""
    of_each = [
        None if goal is None else judge.judge_states(goal, made.observations[1:])
        for goal, made in zip(goals, rollouts, strict=True)
    ]
    met = [said is not None and bool(said.met.any()) for said in of_each]
    score = [0.0 if said is None else float(said.score.max(initial=0)) for said in of_each]
    return verdict(met, score, [said is None or bool(said.abstained.all()) for said in of_each])


class DomainRule(Judge):
    """The domain's own rule, by which the simulator itself ends an episode: always sure, abstains without a goal.

    What is learned by its labels is an upper bound and never the headline: a method that needs the rule of the goal it
    is to learn has not learned it from the language model.
    """

    name = DOMAIN_RULE

    def __init__(self, domain: Domain) -> None:
        """Name the world whose rule it is."""
        self._domain = domain

    @property
    def provenance(self) -> dict[str, Any]:
        """That it is the oracle, and of which domain."""
        return rule_provenance(self._domain.name)

    def judge(self, goals: Sequence[Goal | None], rollouts: Sequence[Rollout]) -> Verdict:
        """Whether each rollout's goal holds after some step of it."""
        met = [
            goal is not None and bool(goal.success(made.observations[1:], made.observations[:-1], made.actions).any())
            for goal, made in zip(goals, rollouts, strict=True)
        ]
        return verdict(met, abstained=[goal is None for goal in goals])

    def judge_states(self, goal: Goal, states: NDArray[Any]) -> Verdict:
        """Whether the goal holds in each state, whatever was done before."""
        return verdict(goal.success(states))


def rule_provenance(domain: str) -> dict[str, Any]:
    """What a label by the rule of a domain says of its judge."""
    return {"judge": DOMAIN_RULE, "domain": domain, "is_oracle": True}
