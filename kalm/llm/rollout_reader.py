"""Runs the language model over a batch of rollouts behind their prompts and picks out what the heads look at.

Shape letters: B prompts, L columns of prompts, S columns behind them, R rollouts, n steps of all rollouts,
m text tokens, H hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kalm.data.grounding_batch import TaskBatch
from kalm.llm.backbone import Backbone
from kalm.llm.packing import Packing, pack, packed_mask, packed_positions
from kalm.llm.rollout_codec import RolloutCodec


class RolloutHidden(NamedTuple):
    """Hidden vectors by what is read off them.

    Attributes:
        observation: At the observation before each step, where the action is predicted, shape (n, H).
        action: At each action, where the next observation is predicted, shape (n, H).
        final: At the observation after each rollout's last step, shape (R, H).
        text: Where each text token, and each answer's end, is predicted, shape (m + R, H).
        text_target: What is to be predicted there, int64 of shape (m + R,).
    """

    observation: Tensor
    action: Tensor
    final: Tensor
    text: Tensor
    text_target: Tensor


def read_rollouts(backbone: Backbone, codec: RolloutCodec, batch: TaskBatch) -> RolloutHidden:
    """Run over prompts, rollouts and answers at once.

    Args:
        backbone: The language model.
        codec: Its inputs for observations and actions.
        batch: Rollouts behind their prompts.
    """
    text, text_lengths = _text(backbone, batch)
    prompts, prompt_mask = backbone.embed_prompts(batch.prompts)
    packing = pack(len(batch.prompts), batch.prompt_of_rollout, batch.lengths, text_lengths)
    last = batch.lengths.cumsum(0) - 1
    columns = _embed(backbone, codec, batch, packing, text, batch.next_observation[last])
    hidden = backbone(
        torch.cat([prompts, columns], dim=1),
        packed_positions(prompt_mask, packing.offset),
        packed_mask(prompt_mask, packing.owner),
    )
    hidden = hidden[:, prompts.shape[1] :].flatten(0, 1)
    # A text token is predicted at the token before it, the first one at the rollout's final observation.
    before_text = torch.cat([packing.text_slot - 1, packing.final_slot + text_lengths]) if batch.answers else text
    ends = torch.full_like(batch.lengths, backbone.end_of_text)
    return RolloutHidden(
        observation=hidden[packing.observation_slot],
        action=hidden[packing.action_slot],
        final=hidden[packing.final_slot],
        text=hidden[before_text],
        text_target=torch.cat([text, ends]) if batch.answers else text,
    )


def _text(backbone: Backbone, batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Token ids of all answers, shape (m,), and how many each rollout has, shape (R,)."""
    token_ids = [backbone.tokenize(answer) for answer in batch.answers]
    lengths = [len(ids) for ids in token_ids] or [0] * len(batch.lengths)
    flat = [token_id for ids in token_ids for token_id in ids]
    device = batch.lengths.device
    return torch.tensor(flat, dtype=torch.int64, device=device), torch.tensor(lengths, device=device)


def _embed(
    backbone: Backbone, codec: RolloutCodec, batch: TaskBatch, packing: Packing, text: Tensor, final: Tensor
) -> Tensor:
    """Vectors of everything behind the prompts, zero where there is nothing, shape (B, S, H)."""
    observations = codec.encode_observation(torch.cat([batch.observation, final]))
    vectors = torch.cat([observations, codec.encode_action(batch.action), backbone.embed_tokens(text)])
    slots = torch.cat([packing.observation_slot, packing.final_slot, packing.action_slot, packing.text_slot])
    columns = vectors.new_zeros(packing.owner.numel(), backbone.hidden_size)
    return columns.index_copy(0, slots, vectors).view(*packing.owner.shape, -1)
