"""Rollouts of several stores under one count: what is read, in which order, at which weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kalm.core import names
from kalm.core.rollout import Rollout
from kalm.data.selection import Selection, returns_to_go
from kalm.data.statistics import rollout_returns
from tests.data.rollouts import imagined_rollouts, real_rollouts, write_store

CHOSEN = [3, 7, 19, 20, 31]  # of 20 rollouts of one store and 12 of another


@pytest.fixture
def written() -> list[Rollout]:
    """What both stores hold, one after the other."""
    return [*real_rollouts(20), *imagined_rollouts(12, "easy")]


@pytest.fixture
def selection(tmp_path: Path, written: list[Rollout]) -> Selection:
    """Three rollouts of the first store, the first and the last of the second."""
    stores = [write_store(tmp_path / "a", written[:20]), write_store(tmp_path / "b", written[20:])]
    return Selection.whole(stores).keep(torch.isin(torch.arange(32), torch.tensor(CHOSEN)))


def test_rollouts_are_read_as_if_they_lay_in_one_store(selection: Selection, written: list[Rollout]) -> None:
    """In any order, beginnings left out: every transition is the one that was written."""
    in_line = [written[number] for number in CHOSEN]
    assert selection.rollouts.tolist() == CHOSEN
    assert selection.lengths.tolist() == [len(rollout) for rollout in in_line]
    assert [row.instruction for row in selection.instruction_rows] == [rollout.instruction for rollout in in_line]
    assert selection.goal_splits.tolist() == ["train"] * 3 + ["easy"] * 2
    places, skipped = torch.tensor([4, 1, 3, 0]), torch.tensor([2, 0, 1, 0])
    rows = selection.rows(places, skipped)
    observation, action, rollout = selection.read((names.OBSERVATION, names.ACTION, names.ROLLOUT_ID), rows)
    expected = [(in_line[place], skip) for place, skip in zip(places, skipped, strict=True)]
    assert torch.equal(action, torch.from_numpy(np.concatenate([r.actions[skip:] for r, skip in expected])))
    before = np.concatenate([r.observations[skip:-1] for r, skip in expected])
    assert torch.equal(observation, torch.from_numpy(before))
    assert rollout.unique_consecutive().tolist() == [31, 7, 20, 3]


def test_sentences_have_one_number_over_all_stores(selection: Selection, written: list[Rollout]) -> None:
    """Of rows in a mixed order; the table has no sentence twice."""
    rows = selection.rows().flip(0)
    (sentence, rollout) = selection.read((names.INSTRUCTION_ID, names.ROLLOUT_ID), rows)
    table = selection.line.instructions
    assert len(set(table)) == len(table)
    assert [table[number] for number in sentence] == [written[number].instruction for number in rollout]


def test_what_is_left_out_is_in_no_part(selection: Selection) -> None:
    """By store and by split; joined again they are the selection, and a store that has none is passed over."""
    first, second = selection.of_stores(0, 1), selection.of_stores(1)
    assert (first.rollouts.tolist(), second.rollouts.tolist()) == ([3, 7, 19], [20, 31])
    assert torch.equal(first.joined_with(second).rollouts, selection.rollouts)
    assert [rows.tolist() for _, rows in second.by_store()] == [[0, 11]]
    assert selection.of_goal_split("easy").rollouts.tolist() == [20, 31]
    nothing = selection.of_goal_split("hard")
    assert len(nothing) == len(nothing.rows()) == 0
    assert selection.rollout(3).actions.tolist() == second.rollout(0).actions.tolist()


def test_weights_follow_their_rollouts(selection: Selection) -> None:
    """Through choices, and to each transition."""
    weighed = Selection(selection.line, selection.rollouts, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    kept = weighed.keep(weighed.rollouts > 7)
    assert kept.weights.tolist() == [3.0, 4.0, 5.0]
    weight, step = kept.read((names.WEIGHT, names.STEP), kept.rows())
    assert weight[step == 0].tolist() == [3.0, 4.0, 5.0]
    assert len(weight) == int(kept.lengths.sum())


def test_returns_are_those_of_plain_addition(selection: Selection, written: list[Rollout]) -> None:
    """Discounted by the step within the rollout; returns to go begin anew in every rollout."""
    expected = [sum(reward * 0.5**step for step, reward in enumerate(written[number].rewards)) for number in CHOSEN]
    assert rollout_returns(selection, 0.5).tolist() == pytest.approx(expected)
    (to_go,) = selection.read((names.RETURN_TO_GO,), selection.rows())
    plain = [written[number].rewards[step:].sum() for number in CHOSEN for step in range(len(written[number]))]
    assert to_go.tolist() == pytest.approx(plain)


def test_a_return_to_go_is_what_is_still_earned() -> None:
    """Rollouts of rewards 1, 2, 4 and 8, 16: 7, 6, 4 and 24, 16."""
    to_go = returns_to_go(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.tensor([3, 2]))
    assert to_go.tolist() == [7, 6, 4, 24, 16]
    assert to_go.dtype == torch.float32
