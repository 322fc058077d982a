"""Chained imagination: a goal with sub-goals is imagined one sub-goal after another. KALM leaves it to future work.

Each link of the chain asks for one sub-goal in the words of the data and goes on from the observation that the last
one reached; which one, the domain decides by that observation (``Domain.next_sub_goal``). The rollout that the links
make up is judged by the whole goal, under whose own instruction it is stored. Goals without sub-goals are imagined as
ever.

Shape letters: O numbers in an observation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.core.goal import Goal, InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.data.language_batches import WorkItem
from kalm.envs.base import Domain
from kalm.llm.imagination.rows import Generated, GoalTest

_MAX_LINK_STEPS = 15  # then the sub-goal is chosen anew; an expert's placement takes six


class ChainedRollout:
    """One rollout in the making, link by link.

    Attributes:
        next_item: The next link; None if the goal has no sub-goals, is met, or is out of steps.
    """

    def __init__(
        self, domain: Domain, item: WorkItem, sentences: Mapping[Goal, Sequence[InstructedGoal]], is_met: GoalTest
    ) -> None:
        """Choose the first link; sentences say how to ask for each goal, ``is_met`` ends the chain."""
        self._domain, self._item, self._sentences, self._is_met = domain, item, sentences, is_met
        self._rng = np.random.default_rng([item.seed, 1])
        self._links: list[tuple[WorkItem, Generated]] = []
        self._has_met_goal = False
        self.next_item = self._choose(item.start)

    def add(self, piece: Generated) -> None:
        """Add a link that was imagined and choose the next."""
        assert self.next_item is not None
        self._links.append((self.next_item, piece))
        before, after = piece.observations[:-1], piece.observations[1:]
        goals = [self._item.instructed.goal] * len(piece.actions)
        self._has_met_goal = bool(self._is_met(goals, before, piece.actions, after).any())
        self.next_item = None if self._has_met_goal else self._choose(piece.observations[-1])

    def rollout(self) -> Rollout:
        """The links one after the other, with the domain's rewards and verdicts for the goal that they serve."""
        pieces = [piece for _, piece in self._links]
        observations = np.concatenate([self._item.start[None], *(piece.observations[1:] for piece in pieces)])
        actions = np.concatenate([piece.actions for piece in pieces])
        links = [
            {"instruction": link.instructed.instruction, "num_steps": len(piece.actions)} for link, piece in self._links
        ]
        stopped_by = "goal" if self._has_met_goal else "limit"
        facts = {"seed": self._item.seed, "stopped_by": stopped_by, "links": links}
        return self._domain.label_rollout(self._item.instructed, observations, actions, Source.IMAGINARY, facts)

    def _choose(self, observation: NDArray[Any]) -> WorkItem | None:
        """The link that goes on from ``observation``, shape (O,)."""
        num_left = self._item.max_steps - sum(len(piece.actions) for _, piece in self._links)
        sub_goal = self._domain.next_sub_goal(self._item.instructed.goal, observation) if num_left else None
        if sub_goal is None:
            return None
        sentences = self._sentences[sub_goal]
        instructed = sentences[int(self._rng.integers(len(sentences)))]
        num_steps = min(num_left, sub_goal.max_steps, _MAX_LINK_STEPS)
        return WorkItem(instructed, observation, num_steps, int(self._rng.integers(2**31)))


def sentences_of_goals(domain: Domain) -> dict[Goal, list[InstructedGoal]]:
    """How to ask for each goal: in the words of the first of the domain's splits that has it."""
    of_sentences: dict[Goal, list[InstructedGoal]] = {}
    for split in domain.goal_splits:
        in_this_split: dict[Goal, list[InstructedGoal]] = {}
        for instructed in domain.instructed_goals(split):
            in_this_split.setdefault(instructed.goal, []).append(instructed)
        of_sentences = in_this_split | of_sentences
    return of_sentences
