"""The oracle: the domain's own rule, by which the simulator itself ends an episode.

What is learned by its labels is an upper bound and never the headline: a method that needs the rule of the goal it is
to learn has not learned it from the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Goal
from kalm.core.rollout import Rollout
from kalm.envs.base import Domain
from kalm.judging.judge import Judge, Verdict, verdict

DOMAIN_RULE = "domain_rule"


def rule_provenance(domain: str) -> dict[str, Any]:
    """What a label by the rule of a domain says of its judge."""
    return {"judge": DOMAIN_RULE, "domain": domain, "is_oracle": True}


class DomainRule(Judge):
    """Asks the domain. It is always sure, and abstains where there is no goal."""

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
        return verdict(np.asarray(goal.success(states)))
