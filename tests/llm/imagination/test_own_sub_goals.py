"""Imagination by the model's own sub-goals: it is asked after every link, until it sees that nothing is left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from kalm.core.errors import KalmError
from kalm.core.validation import validate_rollout
from kalm.data.language_batches import GroundingTask, WorkItem, batch_states
from kalm.language.prompts import generation_prompt
from kalm.llm.grounding.reading import read_rollouts
from kalm.llm.imagination.own_sub_goals import SubGoalWriter, imagine_by_own_sub_goals
from kalm.llm.imagination.rollout_engine import ImaginationSettings, RolloutEngine
from kalm.llm.imagination.rows import Generated
from tests.chain_domain import ChainDomain, step
from tests.llm.models import ANSWERS, DISCRETE, grounded_llm, hand_made_batch, one_hot_starts, one_rollout_alone

LIMIT = 6


def items(number: int) -> list[WorkItem]:
    """Hard goals, every second from the left end, every second from the right end."""
    goals, starts = ChainDomain().instructed_goals("hard"), one_hot_starts([0, 4])
    return [WorkItem(goals[0], starts[i % 2], LIMIT, 100 + i) for i in range(number)]


class Reckoner(SubGoalWriter):
    """Says "right" to the left of the centre and "left" elsewhere; the centre is where all is done."""

    def __init__(self) -> None:
        """It needs no model."""

    def write(
        self, instructions: Sequence[str], observations: NDArray[np.float32], num_answers: int = 1
    ) -> list[list[str]]:
        """By the cell."""
        return [["right" if cell < 2 else "left"] * num_answers for cell in observations.argmax(-1)]

    def is_done(self, instructions: Sequence[str], observations: NDArray[np.float32]) -> NDArray[np.bool_]:
        """At the centre."""
        return np.asarray(observations.argmax(-1) == 2)


def one_step(work: Sequence[WorkItem]) -> list[Generated]:
    """Every link is a step that its sentence names."""
    pieces = []
    for item in work:
        action = np.array([int(item.instructed.instruction == "right")])
        cells = [int(item.start.argmax()), int(step(item.start.argmax(), action[0]))]
        pieces.append(Generated(one_hot_starts(cells), action, "end"))
    return pieces


def test_links_follow_each_other_until_the_model_sees_nothing_left() -> None:
    """From the left end two steps to the right, from the right end two to the left; at the centre both stop."""
    for chain, side in zip(imagine_by_own_sub_goals(items(2), Reckoner(), one_step, 3), ("right", "left"), strict=True):
        assert [link.instructed.instruction for link, _ in chain.links] == [side, side]
        assert_array_equal(chain.links[1][0].start, chain.links[0][1].observations[-1])
        assert chain.observation.argmax() == 2
        assert chain.stopped_by == "end"
        assert [link.max_steps for link, _ in chain.links] == [3, 3]
        assert chain.links[0][0].seed != chain.links[1][0].seed


def test_a_chain_ends_at_its_limit() -> None:
    """Six steps of one, though nothing is ever done; a last link has no more steps than are left."""

    class Restless(Reckoner):
        def is_done(self, instructions: Sequence[str], observations: NDArray[np.float32]) -> NDArray[np.bool_]:
            """Never."""
            return np.zeros(len(observations), dtype=np.bool_)

    (chain,) = imagine_by_own_sub_goals(items(1), Restless(), one_step, 4)
    assert chain.num_steps == LIMIT
    assert chain.stopped_by == "limit"
    assert [link.max_steps for link, _ in chain.links] == [4, 4, 4, 3, 2, 1]


def test_a_rollout_whose_goal_seems_done_at_its_start_has_a_link_all_the_same() -> None:
    """There is no rollout without a step."""
    work = WorkItem(items(1)[0].instructed, one_hot_starts([2])[0], LIMIT, 1)
    (chain,) = imagine_by_own_sub_goals([work], Reckoner(), one_step, 3)
    assert chain.num_steps >= 1


def test_the_engine_makes_sound_rollouts_of_own_sub_goals() -> None:
    """With an untrained model: each from its start, within its limit, under the whole instruction, by its links."""
    model, domain, work = grounded_llm(), ChainDomain(), items(6)
    settings = ImaginationSettings(1.0, "end_head", 0.9, chain_sub_goals=True, sub_goals_by="model", batch_size=4)
    rollouts = RolloutEngine(model.backbone, model.codec, domain, settings).imagine(work)
    for rollout, item in zip(rollouts, work, strict=True):
        assert validate_rollout(rollout, domain.spec) == []
        assert rollout.instruction == item.instructed.instruction
        assert_array_equal(rollout.observations[0], item.start)
        assert sum(link["num_steps"] for link in rollout.provenance["links"]) == len(rollout) <= LIMIT


def test_who_names_sub_goals_must_be_known() -> None:
    """The rule or the model."""
    with pytest.raises(KalmError, match="sub_goals_by is me; it must be one of rule, model"):
        ImaginationSettings(sub_goals_by="me")  # type: ignore[arg-type]


def test_a_state_alone_reads_like_the_first_of_a_rollout() -> None:
    """What leads on from it changes nothing: the end head sees the same."""
    model = grounded_llm()
    batch = one_rollout_alone(hand_made_batch(), 0)
    alone = batch_states(batch.observation[:1], batch.prompts, GroundingTask.GENERATION, model.codec.no_action)
    first = read_rollouts(model.backbone, model.codec, batch).observation[0]
    state = read_rollouts(model.backbone, model.codec, alone).final[0]
    torch.testing.assert_close(state, first, atol=1e-5, rtol=1e-4)


def test_the_writer_asks_the_model_it_was_given() -> None:
    """An end head that is sure of everything, or of nothing, decides; what is written is of the model's words."""
    model = grounded_llm(DISCRETE)
    writer, states = SubGoalWriter(model.backbone, model.codec), one_hot_starts([0, 3])
    for bias, expected in ((100.0, True), (-100.0, False)):
        torch.nn.init.constant_(model.codec.end_head.bias, bias)
        torch.nn.init.zeros_(model.codec.end_head.weight)
        assert writer.is_done([generation_prompt(text) for text in ANSWERS], states).tolist() == [expected] * 2
    known = {word for answer in ANSWERS for word in answer.split()}
    for texts, asked in zip(writer.write(ANSWERS, states, 3), ANSWERS, strict=True):
        assert len(texts) == 3
        assert all(text == asked or set(text.split()) <= known for text in texts)


def test_where_the_likeliest_part_is_done_the_one_drawn_most_often_that_is_not_is_pursued() -> None:
    """Red is done.

    Of the first the model says red, then draws red, red, blue, green, green, red: green it is, drawn twice. Of the
    second all that is drawn is done as well: nothing is left. The third says blue, which is not done: nothing is drawn.
    """

    class Drawer(SubGoalWriter):
        def __init__(self) -> None:
            pass

        def write(
            self, instructions: Sequence[str], observations: NDArray[np.float32], num_answers: int = 1
        ) -> list[list[str]]:
            """By the instruction."""
            drawn = {"a": ["red", "red", "red", "blue", "green", "green", "red"], "b": ["red"] * 7, "c": ["blue"] * 7}
            return [drawn[instruction][:num_answers] for instruction in instructions]

        def is_done(self, instructions: Sequence[str], observations: NDArray[np.float32]) -> NDArray[np.bool_]:
            """Red is."""
            return np.array([instruction == "red" for instruction in instructions])

    assert Drawer().left(["a", "b", "c"], one_hot_starts([0, 0, 0])) == [
        ("green", True),
        ("red", False),
        ("blue", True),
    ]
