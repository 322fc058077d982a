"""A network that learned another judge's labels and answers in its place, for all states at the price of a few.

Shape letters: R rollouts, S states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Goal
from kalm.core.rollout import Rollout
from kalm.envs.base import Domain
from kalm.judging.judge import Judge, Verdict, judge_by_states, verdict


class RewardModel(Protocol):
    """What the proxy asks of a network; nothing here knows how it learned."""

    def probability(self, instruction: str, states: NDArray[Any]) -> NDArray[np.float32] | None:
        """How likely it is that each of S states meets what a sentence asks for; None for one that it cannot read."""

    def threshold(self, task: str) -> float | None:
        """Probability from which a goal of a task counts as met; None for a task that it never learned."""


class ProxyJudge(Judge):
    """Says that a goal is met where the network is surer than its threshold for goals of that task."""

    def __init__(self, model: RewardModel, domain: Domain, provenance: Mapping[str, Any], name: str = "proxy") -> None:
        """Name the network, say in plain JSON types which it is, and call the label something."""
        self.name = name
        self._model, self._domain, self._provenance = model, domain, dict(provenance)

    @property
    def provenance(self) -> dict[str, Any]:
        """Which network, what it is sure enough by, and whose labels it learned."""
        return {"judge": "proxy", **self._provenance}

    def judge(self, goals: Sequence[Goal | None], rollouts: Sequence[Rollout]) -> Verdict:
        """Whether the goal is met after some step: as sure as of the surest state."""
        return judge_by_states(self, goals, rollouts)

    def judge_states(self, goal: Goal, states: NDArray[Any]) -> Verdict:
        """Ask the network about each state; it abstains on goals that have no sentence, or of a task it never saw."""
        instruction, threshold = self._domain.instruction_for(goal), self._model.threshold(goal.task)
        found = None
        if instruction and threshold is not None:
            found = self._model.probability(instruction, states)
        if found is None or threshold is None:
            nothing = np.zeros(len(states), dtype=np.bool_)
            return verdict(nothing, abstained=~nothing)
        return verdict(found >= threshold, found)
