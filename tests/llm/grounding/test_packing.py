"""Packing: every token has its place, and sees what it would see alone."""

from __future__ import annotations

import pytest
import torch

from kalm.llm.grounding.packing import counts, pack


def test_layout_is_as_drawn() -> None:
    """Prompts of 2 and 1 tokens; rollouts of 1 and 0+... worked out by hand.

    Group 0: prompt p p, rollout of 1 step with 1 text token (s a s t), rollout of 2 steps (s a s a s): 2 + 4 + 5 = 11.
    Group 1: prompt p, rollout of 1 step (s a s): 1 + 3 = 4. Rows of 12 columns: 11 fits in row 0, 4 in row 1 only.
    """
    packing = pack(
        torch.tensor([2, 1]), torch.tensor([0, 0, 1]), torch.tensor([1, 2, 1]), torch.tensor([1, 0, 0]), row_size=12
    )
    assert packing.prompt_slot.tolist() == [0, 1, 12]
    assert packing.observation_slot.tolist() == [2, 6, 8, 13]
    assert packing.action_slot.tolist() == [3, 7, 9, 14]
    assert packing.final_slot.tolist() == [4, 10, 15]
    assert packing.text_slot.tolist() == [5]
    assert packing.positions.tolist() == [
        [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 0],
        [0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_groups_share_a_row_that_has_room() -> None:
    """Groups of 4, 4 and 8 tokens fit into two rows of 8."""
    packing = pack(torch.tensor([1, 5, 1]), torch.arange(3), torch.tensor([1, 1, 1]), torch.zeros(3).long(), row_size=8)
    assert packing.positions.shape == (2, 8)
    slots = torch.cat([packing.prompt_slot, packing.observation_slot, packing.action_slot, packing.final_slot])
    assert sorted(slots.tolist()) == list(range(16))


def test_a_group_longer_than_a_row_widens_the_rows() -> None:
    """Nothing is cut off."""
    packing = pack(torch.tensor([3]), torch.tensor([0]), torch.tensor([4]), torch.tensor([2]), row_size=5)
    assert packing.positions.shape == (1, 3 + 9 + 2)


def test_tokens_see_their_prompt_and_their_own_rollout_only() -> None:
    """The row p p | s a s | s a s | p | s a s, token by token."""
    packing = pack(
        torch.tensor([2, 1]), torch.tensor([0, 0, 1]), torch.ones(3).long(), torch.zeros(3).long(), row_size=12
    )
    sees = packing.attention_mask[0, 0]
    assert sees.shape == (12, 12)
    assert sees[1].nonzero().flatten().tolist() == [0, 1]
    assert sees[4].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    assert sees[7].nonzero().flatten().tolist() == [0, 1, 5, 6, 7]
    assert sees[8].nonzero().flatten().tolist() == [8]
    assert sees[11].nonzero().flatten().tolist() == [8, 9, 10, 11]


def test_padding_sees_something() -> None:
    """A token that saw nothing would be not a number, and spoil gradients."""
    packing = pack(torch.tensor([1, 1]), torch.arange(2), torch.tensor([3, 1]), torch.zeros(2).long(), row_size=9)
    assert packing.attention_mask.any(dim=-1).all()


def test_groups_have_rows_of_their_own_if_asked() -> None:
    """Groups of 4, 4 and 12 tokens: three rows of 12, though the first two would fit into one."""
    sizes = torch.tensor([1, 1, 1]), torch.arange(3), torch.tensor([1, 1, 5]), torch.zeros(3).long()
    packing = pack(*sizes, row_size=None)
    assert packing.positions.shape == (3, 12)
    assert packing.prompt_slot.tolist() == [0, 12, 24]
    assert pack(*sizes, row_size=1).positions.shape == (2, 12)


def test_a_prompt_may_stand_alone() -> None:
    """One of 3 tokens without a rollout, between two with; it is read from its beginning and sees itself only."""
    packing = pack(torch.tensor([1, 3, 1]), torch.tensor([0, 2]), torch.tensor([1, 1]), torch.zeros(2).long(), 11)
    assert packing.prompt_slot.tolist() == [0, 8, 9, 10, 4]
    assert packing.positions[0, 8:].tolist() == [0, 1, 2]
    assert packing.attention_mask[0, 0, 10].nonzero().flatten().tolist() == [8, 9, 10]


def test_rows_hold_vectors_in_their_slots() -> None:
    """Zeros where nothing is."""
    packing = pack(torch.tensor([1]), torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), row_size=6)
    rows = packing.rows(
        [packing.action_slot, packing.prompt_slot], [torch.tensor([[7.0, 8]]), torch.tensor([[1.0, 2]])]
    )
    assert rows.tolist() == [[[1, 2], [0, 0], [7, 8], [0, 0], [0, 0], [0, 0]]]


def test_counts() -> None:
    """Counting starts anew for each size, and sizes may be zero."""
    assert counts(torch.tensor([2, 0, 3])).tolist() == [0, 1, 0, 1, 2]


def test_padding_share() -> None:
    """A prompt of 2 with a rollout of 2 steps (5 tokens), and one of 1 with 1 step (3): 11 of 14 columns are used."""
    packing = pack(torch.tensor([2, 1]), torch.arange(2), torch.tensor([2, 1]), torch.zeros(2).long(), row_size=7)
    assert packing.positions.shape == (2, 7)
    assert packing.padding_share == pytest.approx(3 / 14)
