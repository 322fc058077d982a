"""Chained imagination: links follow each other without a gap, within the limit, until the whole goal is met."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.testing import assert_array_equal

from kalm.core.goal import FloatArray, Goal, InstructedGoal
from kalm.core.rollout import Rollout
from kalm.core.validation import validate_rollout
from kalm.data.language_batches import WorkItem
from kalm.llm.imagination.rollout_engine import ImaginationSettings, RolloutEngine
from tests.chain_domain import CellGoal, ChainDomain
from tests.llm.models import grounded_llm, one_hot_starts

LIMIT = 3


class HastyGoal(CellGoal):
    """A cell; there is little time for those that are sub-goals, so that some are given up."""

    @property
    def max_steps(self) -> int:  # type: ignore[override]
        """Of the centre more than of the others."""
        return LIMIT if self.cell == 2 else 2


class CellByCell(ChainDomain):
    """The chain, on which the way to the centre leads over the cell next to it."""

    goal_class = HastyGoal

    def next_sub_goal(self, goal: Goal, observation: FloatArray) -> Goal | None:
        """From an end to the cell beside the centre, from there back to the end; none for goals of other splits."""
        cell = int(observation.argmax())
        if goal != HastyGoal(2) or cell == 2:
            return None
        return HastyGoal({0: 1, 1: 0, 3: 4, 4: 3}[cell])


def items(domain: ChainDomain, goal_split: str, num_items: int) -> list[WorkItem]:
    """Every second from the left end, every second from the right end."""
    goals = domain.instructed_goals(goal_split)
    starts = one_hot_starts([0, 4])
    return [WorkItem(goals[i % len(goals)], starts[i % 2], LIMIT, 100 + i) for i in range(num_items)]


def run(
    domain: ChainDomain, work: Sequence[WorkItem], max_rows: int = 8, chain_sub_goals: bool = True
) -> list[Rollout]:
    """Imagine with an untrained model, by sub-goals."""
    model = grounded_llm()
    settings = ImaginationSettings(temperature=1.0, chain_sub_goals=chain_sub_goals, batch_size=max_rows)
    return RolloutEngine(model.backbone, model.codec, domain, settings).imagine(work)


def test_links_make_up_one_rollout_of_the_whole_goal() -> None:
    """Sound, from its start, no longer than the limit; its links cover it, each asking for what was next."""
    domain = CellByCell()
    work = items(domain, "hard", 20)
    rollouts = run(domain, work)
    names = {one.instruction: one.goal for split in domain.goal_splits for one in domain.instructed_goals(split)}
    for rollout, item in zip(rollouts, work, strict=True):
        assert validate_rollout(rollout, domain.spec) == []
        assert rollout.instruction == item.instructed.instruction
        assert_array_equal(rollout.observations[0], item.start)
        assert len(rollout) <= LIMIT
        first = 0
        for link in rollout.provenance["links"]:
            assert names[link["instruction"]] == domain.next_sub_goal(HastyGoal(2), rollout.observations[first])
            first += link["num_steps"]
        assert first >= len(rollout)
        assert rollout.is_success == (rollout.provenance["stopped_by"] == "goal")
    assert max(len(rollout.provenance["links"]) for rollout in rollouts) > 1
    assert 0 < sum(rollout.is_success for rollout in rollouts) < len(rollouts)


def test_goals_without_sub_goals_are_imagined_as_ever() -> None:
    """The same rollouts, in the same places among goals that have some."""
    domain = CellByCell()
    plain, hard = items(domain, "easy", 6), items(domain, "hard", 3)
    mixed = [plain[0], hard[0], *plain[1:4], hard[1], hard[2], *plain[4:]]
    rollouts = run(domain, mixed)
    alone = run(domain, plain, chain_sub_goals=False)
    found = [rollout for rollout in rollouts if "links" not in rollout.provenance]
    assert len(found) == 6
    for one, other in zip(found, alone, strict=True):
        assert one.instruction == other.instruction
        assert_array_equal(one.actions, other.actions)
    assert [rollout.instruction for rollout in rollouts] == [item.instructed.instruction for item in mixed]


def test_a_chain_does_not_depend_on_its_batch() -> None:
    """Its seed decides its wordings and its luck, however many are imagined at a time."""
    domain = CellByCell()
    work = items(domain, "hard", 8)
    for max_rows in (2, 3, 8):
        for one, item in zip(run(domain, work, max_rows), work, strict=True):
            (alone,) = run(domain, [item])
            assert_array_equal(one.actions, alone.actions)
            assert one.provenance == alone.provenance


def test_a_domain_without_sub_goals_chains_nothing() -> None:
    """The default of the contract."""
    domain = ChainDomain()
    hard: InstructedGoal = domain.instructed_goals("hard")[0]
    assert domain.next_sub_goal(hard.goal, np.eye(5)[0]) is None
    assert all("links" not in rollout.provenance for rollout in run(domain, items(domain, "hard", 4)))
