"""Runs the language model over rollouts behind their prompts, and over texts; picks out what the heads look at.

General text is read as the model itself reads any: each text for itself, every token predicted from those before it. In
front of it stands what the tokenizer puts in front of any, a beginning or nothing. Where it ends is not learned: it may
be a piece of a longer one.

Shape letters: R rollouts, n steps of all rollouts, m text tokens of all answers, H hidden size; of general text B
texts, t tokens with what stands in front, g tokens to be predicted.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kalm.data.language_batches import GeneralText, GroundingBatch
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.grounding.packing import counts, pack
from kalm.llm.grounding.rollout_codec import RolloutCodec

ROW_SIZE = 128  # wide enough for little padding, narrow enough for cheap attention


class RolloutHidden(NamedTuple):
    """Hidden vectors by what is read off them."""

    observation: Tensor  # at the observation before each step, where the action is predicted, (n, H)
    action: Tensor  # at each action, where the next observation is predicted, (n, H)
    final: Tensor  # at the observation after each rollout's last step, (R, H)
    text: Tensor  # where each text token, and each answer's end, is predicted, (m + R, H)
    text_target: Tensor  # what is to be predicted there, int64 of shape (m + R,)
    general_text: Tensor  # where each token of general text is predicted, (g, H)
    general_text_target: Tensor  # what is to be predicted there, int64 of shape (g,)
    padding_share: float  # part of what the model ran over that was nothing, in [0, 1)


def read_rollouts(
    backbone: Backbone, codec: RolloutCodec, batch: GroundingBatch, row_size: int | None = ROW_SIZE
) -> RolloutHidden:
    """Run over prompts, rollouts and answers at once, in rows of ``row_size`` tokens, or a row a prompt where None.

    The size of a row changes the work, not the result.
    """
    text, text_lengths = _text(backbone, batch)
    if not backbone.reads_any_mask:
        batch, row_size = _with_a_prompt_each(batch), None
    prompts, prompt_mask = backbone.embed_prompts(batch.prompts)
    prompt_lengths = prompt_mask.sum(dim=1)
    if backbone.context_size is not None:
        num_tokens = prompt_lengths[batch.prompt_of_rollout] + 2 * batch.lengths + 1 + text_lengths
        backbone.require_room(int(num_tokens.max()))
    general = embed_texts(backbone, batch.general_text, batch.lengths.device)
    # A text is laid out like a prompt that no rollout follows.
    laid_out = torch.cat([prompt_lengths, general.lengths])
    packing = pack(laid_out, batch.prompt_of_rollout, batch.lengths, text_lengths, row_size)
    observations = codec.encode_observation(torch.cat([batch.observation, batch.final_observation]))
    in_front = torch.cat([prompts[prompt_mask], general.vectors])
    vectors = [in_front, observations, codec.encode_action(batch.action), backbone.embed_tokens(text)]
    slots = [packing.prompt_slot, packing.observation_slot, packing.final_slot, packing.action_slot, packing.text_slot]
    rows = packing.rows(slots, vectors)
    hidden = backbone(rows, packing.positions, packing.attention_mask).flatten(0, 1)
    general_slot = packing.prompt_slot[len(in_front) - len(general.vectors) :]
    answered = text_lengths > 0
    # A text token is predicted at the token before it, the first one at the rollout's final observation.
    before_text = torch.cat([packing.text_slot - 1, (packing.final_slot + text_lengths)[answered]])
    ends = torch.full_like(batch.lengths, backbone.end_of_text)[answered]
    return RolloutHidden(
        observation=hidden[packing.observation_slot],
        action=hidden[packing.action_slot],
        final=hidden[packing.final_slot],
        text=hidden[before_text],
        text_target=torch.cat([text, ends]),
        general_text=hidden[general_slot[general.before]],
        general_text_target=general.target,
        padding_share=packing.padding_share,
    )


def read_texts(backbone: Backbone, text: GeneralText, device: torch.device) -> tuple[Tensor, Tensor]:
    """Run over texts alone, one or more.

    Returns:
        Hidden vectors where tokens are predicted, shape (g, H); what is to be predicted, int64 of shape (g,).
    """
    texts = embed_texts(backbone, text, device)
    no_rollouts = torch.zeros(0, dtype=torch.int64, device=device)
    packing = pack(
        texts.lengths, no_rollouts, no_rollouts, no_rollouts, text.max_tokens if backbone.reads_any_mask else None
    )
    rows = packing.rows([packing.prompt_slot], [texts.vectors])
    hidden = backbone(rows, packing.positions, packing.attention_mask).flatten(0, 1)
    return hidden[packing.prompt_slot[texts.before]], texts.target


class EmbeddedTexts(NamedTuple):
    """Texts ready to be read, one after the other."""

    vectors: Tensor  # of each token, (t, H)
    lengths: Tensor  # tokens of each text, int64 of shape (B,)
    before: Tensor  # the token before each one that is to be predicted, int64 of shape (g,), in [0, t)
    target: Tensor  # what is to be predicted there, int64 of shape (g,)


def embed_texts(backbone: Backbone, text: GeneralText, device: torch.device) -> EmbeddedTexts:
    """Cut texts, of which there may be none, to what is to be read of them, and embed that."""
    most = text.max_tokens if backbone.context_size is None else min(text.max_tokens, backbone.context_size)
    beginning = backbone.beginning_of_text
    ids_of = [[*beginning, *backbone.tokenize(entry)][:most] for entry in text.texts]
    token_ids = torch.tensor([token_id for ids in ids_of for token_id in ids], dtype=torch.int64, device=device)
    lengths = torch.tensor([len(ids) for ids in ids_of], dtype=torch.int64, device=device)
    is_predicted = counts(lengths) > 0  # all but the first, which has nothing before it
    return EmbeddedTexts(
        vectors=backbone.embed_tokens(token_ids),
        lengths=lengths,
        before=is_predicted.nonzero().flatten() - 1,
        target=token_ids[is_predicted],
    )


def _with_a_prompt_each(batch: GroundingBatch) -> GroundingBatch:
    """Rollouts that share a prompt get a copy each, and so a row each."""
    shared = batch.prompt_of_rollout
    prompts = [batch.prompts[prompt] for prompt in shared.tolist()]
    return batch._replace(prompts=prompts, prompt_of_rollout=torch.arange(len(prompts), device=shared.device))


def _text(backbone: Backbone, batch: GroundingBatch) -> tuple[Tensor, Tensor]:
    """Token ids of all answers, shape (m,), and how many each rollout has, shape (R,)."""
    token_ids = [backbone.tokenize(answer) for answer in batch.answers]
    flat = [token_id for ids in token_ids for token_id in ids]
    device = batch.lengths.device
    lengths = torch.tensor([len(ids) for ids in token_ids], device=device)
    return torch.tensor(flat, dtype=torch.int64, device=device), lengths
