"""Where every token of a batch lies: several rollouts behind one prompt, in one row, unseen by each other.

A prompt costs as many tokens as a whole rollout, so reading it once for all rollouts of the same instruction nearly
halves the work; and rows filled with several short rollouts hardly need padding. What a rollout's tokens see, and
their positions, are as if it were alone behind its prompt.

A row is: prompt, padding, then for each rollout  s0 a0 s1 a1 ... sT  and, for explanation, the answer's tokens.

Shape letters: B rows, L columns of prompts, S columns behind them, R rollouts, n steps of all rollouts, m text tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """Columns are counted from the end of the prompts' columns; a slot is ``row * num_columns + column``.

    Attributes:
        num_columns: Columns behind the prompts, S.
        observation_slot: Of the observation before each step, int64 of shape (n,).
        action_slot: Of each action, int64 of shape (n,).
        final_slot: Of the observation after each rollout's last step, int64 of shape (R,).
        text_slot: Of each answer's tokens, int64 of shape (m,).
        owner: Which rollout each column belongs to, int64 of shape (B, S); -1 is padding.
        offset: Tokens of the same rollout before each column, int64 of shape (B, S).
    """

    num_columns: int
    observation_slot: Tensor
    action_slot: Tensor
    final_slot: Tensor
    text_slot: Tensor
    owner: Tensor
    offset: Tensor


def pack(num_rows: int, row_of_rollout: Tensor, lengths: Tensor, text_lengths: Tensor) -> Packing:
    """Lay out rollouts in rows, in order.

    Args:
        num_rows: Rows, B.
        row_of_rollout: Row of each rollout, int64 of shape (R,), never falling.
        lengths: Steps of each rollout, int64 of shape (R,).
        text_lengths: Text tokens behind each rollout, int64 of shape (R,).
    """
    num_tokens = 2 * lengths + 1 + text_lengths
    row_tokens = torch.zeros(num_rows, dtype=torch.int64, device=lengths.device)
    row_tokens = row_tokens.index_add(0, row_of_rollout, num_tokens)
    row_starts = row_tokens.cumsum(0) - row_tokens
    first_column = num_tokens.cumsum(0) - num_tokens - row_starts[row_of_rollout]
    num_columns = int(row_tokens.max())
    first_slot = row_of_rollout * num_columns + first_column
    final_slot = first_slot + 2 * lengths
    step = first_slot.repeat_interleave(lengths) + 2 * counts(lengths)
    rollout = torch.arange(len(lengths), device=lengths.device).repeat_interleave(num_tokens)
    offset = counts(num_tokens)
    token_slot = first_slot[rollout] + offset
    empty = torch.full((num_rows * num_columns,), -1, device=lengths.device)
    return Packing(
        num_columns=num_columns,
        observation_slot=step,
        action_slot=step + 1,
        final_slot=final_slot,
        text_slot=final_slot.repeat_interleave(text_lengths) + 1 + counts(text_lengths),
        owner=empty.index_copy(0, token_slot, rollout).view(num_rows, num_columns),
        offset=torch.zeros_like(empty).index_copy(0, token_slot, offset).view(num_rows, num_columns),
    )


def packed_mask(prompt_mask: Tensor, owner: Tensor) -> Tensor:
    """What each token may see: the real tokens of the prompt up to itself, and its own rollout up to itself.

    Args:
        prompt_mask: True at the real tokens of each prompt, shape (B, L).
        owner: As in ``Packing``, shape (B, S).

    Returns:
        Bool of shape (B, 1, L + S, L + S).
    """
    num_rows, size = len(owner), prompt_mask.shape[1] + owner.shape[1]
    is_prompt = torch.cat([prompt_mask, torch.zeros_like(owner, dtype=torch.bool)], dim=1)
    everyone = torch.cat([torch.full_like(prompt_mask, -2, dtype=torch.int64), owner], dim=1)
    related = is_prompt[:, None] | (everyone[:, :, None] == everyone[:, None])
    causal = torch.ones(size, size, dtype=torch.bool, device=owner.device).tril()
    return (related & causal).view(num_rows, 1, size, size)


def packed_positions(prompt_mask: Tensor, offset: Tensor) -> Tensor:
    """Positions as if each rollout were alone behind its prompt, int64 of shape (B, L + S)."""
    prompt = torch.arange(prompt_mask.shape[1], device=offset.device).expand(prompt_mask.shape)
    return torch.cat([prompt, prompt_mask.sum(dim=1, keepdim=True) + offset], dim=1)


def counts(sizes: Tensor) -> Tensor:
    """0, 1, ... sizes[0] - 1, 0, 1, ... sizes[1] - 1, and so on: int64 of shape (sum of sizes,)."""
    starts = sizes.cumsum(0) - sizes
    return torch.arange(int(sizes.sum()), device=sizes.device) - starts.repeat_interleave(sizes)
