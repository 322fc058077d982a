"""Where every token of a batch lies: rollouts of the same prompt read it together, and rows are filled up.

A prompt costs more tokens than most rollouts, so reading it once for several of them nearly halves the work. A group
is a prompt with its rollouts; a row holds one group or more. What a token sees, and its position, are as if its
rollout were alone behind its prompt:

    row:  prompt | s0 a0 s1 a1 ... sT answer | s0 a0 ... sT answer | prompt | s0 a0 ...
                 '--- first rollout ---------'--- second -----------'        '--- of another group

Shape letters: B rows, S columns, P prompts, R rollouts, n steps of all rollouts, m text tokens, p prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_PROMPT = -1  # owner of prompt tokens
_PADDING = -2


class Packing(NamedTuple):
    """Slots are int64 and count through the rows: ``row * S + column``."""

    prompt_slot: Tensor  # of each token of the prompts, (p,)
    observation_slot: Tensor  # of the observation before each step, (n,)
    action_slot: Tensor  # of each action, (n,)
    final_slot: Tensor  # of the observation after each rollout's last step, (R,)
    text_slot: Tensor  # of each token of the answers, (m,)
    positions: Tensor  # tokens before each token as it sees it, int64 of shape (B, S)
    attention_mask: Tensor  # what each token may see, bool of shape (B, 1, S, S)

    def rows(self, slots: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
        """Vectors of shape (tokens, H) in the slots that they are for, and zeros elsewhere: (B, S, H)."""
        placed = torch.cat(list(vectors))
        empty = placed.new_zeros(self.positions.numel(), placed.shape[1])
        return empty.index_copy(0, torch.cat(list(slots)), placed).view(*self.positions.shape, -1)

    @property
    def padding_share(self) -> float:
        """Part of all columns of all rows that hold nothing, in [0, 1)."""
        slots = self.prompt_slot, self.observation_slot, self.action_slot, self.final_slot, self.text_slot
        return 1 - sum(map(len, slots)) / self.positions.numel()


def pack(
    prompt_lengths: Tensor, prompt_of_rollout: Tensor, lengths: Tensor, text_lengths: Tensor, row_size: int | None
) -> Packing:
    """Lay out prompts and their rollouts.

    Args:
        prompt_lengths: Tokens of each prompt, int64 of shape (P,).
        prompt_of_rollout: Prompt of each rollout, int64 of shape (R,), never falling.
        lengths: Steps of each rollout, int64 of shape (R,).
        text_lengths: Tokens of the answer behind each rollout, int64 of shape (R,).
        row_size: Columns of a row; more if a group needs more. None gives each group a row of its own.
    """
    num_tokens = 2 * lengths + 1 + text_lengths
    group_sizes = prompt_lengths.index_add(0, prompt_of_rollout, num_tokens)
    sizes = group_sizes.cpu().numpy()
    num_columns = max(row_size or 0, int(sizes.max()))
    if row_size is None:
        first_slot, num_rows = num_columns * np.arange(len(sizes)), len(sizes)
    else:
        first_slot, num_rows = _place(sizes, num_columns)
    prompt_start = torch.from_numpy(first_slot).to(lengths.device)
    prompt_slot = prompt_start.repeat_interleave(prompt_lengths) + counts(prompt_lengths)

    # Rollouts lie behind their prompt in order: tokens of all before, less those of earlier groups.
    before_rollout = num_tokens.cumsum(0) - num_tokens
    before_group = (group_sizes - prompt_lengths).cumsum(0) - (group_sizes - prompt_lengths)
    start = (prompt_start + prompt_lengths - before_group)[prompt_of_rollout] + before_rollout
    final_slot = start + 2 * lengths
    observation_slot = start.repeat_interleave(lengths) + 2 * counts(lengths)

    rollout = torch.arange(len(lengths), device=lengths.device).repeat_interleave(num_tokens)
    token = counts(num_tokens)
    slots = torch.cat([prompt_slot, start[rollout] + token])
    prompt = torch.arange(len(prompt_lengths), device=lengths.device).repeat_interleave(prompt_lengths)
    group = torch.cat([prompt, prompt_of_rollout[rollout]])
    owner = torch.cat([torch.full_like(prompt, _PROMPT), rollout])
    position = torch.cat([counts(prompt_lengths), prompt_lengths[prompt_of_rollout][rollout] + token])
    empty = torch.full((num_rows * num_columns,), _PADDING, device=lengths.device)
    group, owner, position = (
        background.index_copy(0, slots, values).view(num_rows, num_columns)
        for background, values in ((empty, group), (empty, owner), (torch.zeros_like(empty), position))
    )
    return Packing(
        prompt_slot=prompt_slot,
        observation_slot=observation_slot,
        action_slot=observation_slot + 1,
        final_slot=final_slot,
        text_slot=final_slot.repeat_interleave(text_lengths) + 1 + counts(text_lengths),
        positions=position,
        attention_mask=_visible(group, owner),
    )


def counts(sizes: Tensor) -> Tensor:
    """0, 1, ... sizes[0] - 1, 0, 1, ... sizes[1] - 1, and so on: int64 of shape (sum of sizes,)."""
    starts = sizes.cumsum(0) - sizes
    return torch.arange(int(sizes.sum()), device=sizes.device) - starts.repeat_interleave(sizes)


def _place(sizes: np.ndarray, row_size: int) -> tuple[np.ndarray, int]:
    """First slot of each group (P,) and the number of rows: largest group first, into the fullest row with room."""
    first_slot = np.zeros(len(sizes), dtype=np.int64)
    used = np.zeros(0, dtype=np.int64)
    for group in np.argsort(-sizes, kind="stable"):
        fits = np.flatnonzero(used + sizes[group] <= row_size)
        row = fits[used[fits].argmax()] if len(fits) else len(used)
        used = used if len(fits) else np.append(used, 0)
        first_slot[group] = row * row_size + used[row]
        used[row] += sizes[group]
    return first_slot, len(used)


def _visible(group: Tensor, owner: Tensor) -> Tensor:
    """A token sees the prompt of its group and its own rollout, both up to itself; padding sees only padding."""
    same_group = group[:, :, None] == group[:, None]
    related = (owner[:, None] == _PROMPT) | (owner[:, :, None] == owner[:, None])
    causal = torch.ones(group.shape[1], group.shape[1], dtype=torch.bool, device=group.device).tril()
    return (same_group & related & causal)[:, None]
