"""Chained imagination: a goal with sub-goals is imagined one sub-goal after another. KALM leaves it to future work.

Each link of the chain asks for one sub-goal in the words of the data and goes on from the observation that the last
one reached; which one, the domain decides by that observation (``Domain.next_sub_goal``). The rollout that the links
make up is judged by the whole goal, under whose own instruction it is stored. Goals without sub-goals are imagined as
ever.

Shape letters: B rollouts, O numbers in an observation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kalm.data.rollout import Rollout
from kalm.data.work_item import WorkItem
from kalm.envs.base import Domain, Goal, InstructedGoal
from kalm.llm.backbone import Backbone
from kalm.llm.generation import Sampling, imagine
from kalm.llm.rollout_codec import RolloutCodec
from kalm.types import GoalSplit, Source

_MAX_LINK_STEPS = 15  # then the sub-goal is chosen anew; an expert's placement takes six


def imagine_chained(
    backbone: Backbone, codec: RolloutCodec, domain: Domain, items: Sequence[WorkItem], sampling: Sampling
) -> list[Rollout]:
    """Imagine one rollout for each work item, by sub-goals where its goal has some.

    Args:
        backbone: The grounded language model.
        codec: Its inputs and outputs for observations and actions.
        domain: Whose rules name sub-goals and judge the outcome.
        items: What to imagine.
        sampling: How freely.

    Returns:
        Rollouts in the order of ``items``; those made of links say their instructions and lengths as provenance.
    """
    sentences = _sentences(domain)
    chains = [_Chain(domain, item, sentences) for item in items]
    whole = [item for item, chain in zip(items, chains, strict=True) if chain.next_link is None]
    rollouts = iter(imagine(backbone, codec, domain, whole, sampling) if whole else [])
    while going := [(chain, chain.next_link) for chain in chains if chain.next_link is not None]:
        links = imagine(backbone, codec, domain, [link for _, link in going], sampling)
        for (chain, _), link in zip(going, links, strict=True):
            chain.add(link)
    return [chain.rollout() if chain.links else next(rollouts) for chain in chains]


class _Chain:
    """One rollout in the making.

    Attributes:
        next_link: What to imagine next; None if the goal has no sub-goals, is met, or is out of steps.
        links: What was imagined so far.
    """

    def __init__(self, domain: Domain, item: WorkItem, sentences: Mapping[Goal, Sequence[InstructedGoal]]) -> None:
        self._domain, self._item, self._sentences = domain, item, sentences
        self._rng = np.random.default_rng([item.seed, 1])
        self.links: list[Rollout] = []
        self.next_link = self._choose(item.start)

    def add(self, link: Rollout) -> None:
        """Add a link that was imagined and choose the next."""
        self.links.append(link)
        judged = self._domain.label_rollout(self._item.instructed, link.observations, link.actions, Source.IMAGINARY)
        self.next_link = None if judged.is_success else self._choose(link.observations[-1])

    def rollout(self) -> Rollout:
        """The links one after the other, judged by the goal that they serve."""
        observations = [self._item.start[None], *(link.observations[1:] for link in self.links)]
        labelled = self._domain.label_rollout(
            self._item.instructed,
            np.concatenate(observations),
            np.concatenate([link.actions for link in self.links]),
            Source.IMAGINARY,
        )
        facts = {
            "seed": self._item.seed,
            "stopped_by": "goal" if labelled.is_success else "limit",
            "links": [{"instruction": link.instruction, "num_steps": len(link)} for link in self.links],
        }
        return replace(labelled, provenance=facts)

    def _choose(self, observation: NDArray[Any]) -> WorkItem | None:
        """The link that goes on from ``observation``, shape (O,)."""
        num_left = self._item.max_steps - sum(map(len, self.links))
        sub_goal = self._domain.next_sub_goal(self._item.instructed.goal, observation) if num_left else None
        if sub_goal is None:
            return None
        sentences = self._sentences[sub_goal]
        instructed = sentences[int(self._rng.integers(len(sentences)))]
        num_steps = min(num_left, self._domain.max_steps(sub_goal), _MAX_LINK_STEPS)
        return WorkItem(instructed, observation, num_steps, int(self._rng.integers(2**31)))


def _sentences(domain: Domain) -> dict[Goal, list[InstructedGoal]]:
    """How to ask for each goal of the data; for each easy goal that the data lack, in its own words."""
    of_sentences: dict[Goal, list[InstructedGoal]] = {}
    for split in (GoalSplit.TRAIN, GoalSplit.EASY):
        for instructed in domain.instructed_goals(split):
            of_sentences.setdefault(instructed.goal, []).append(instructed)
    return of_sentences
