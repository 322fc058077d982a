"""Rollout explanation: a rollout in, the words of its goal out.

Shape letters: R rollouts, T steps, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kalm.data.grounding_batch import GroundingBatch
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.grounding.rollout_codec import RolloutCodec

MAX_ANSWER_TOKENS = 48


@torch.inference_mode()
def write_answers(backbone: Backbone, codec: RolloutCodec, batch: GroundingBatch) -> list[str]:
    """The likeliest answer behind each rollout, token by token.

    Args:
        backbone: The grounded language model.
        codec: Its inputs for observations and actions.
        batch: Rollouts, each behind a prompt of its own.

    Returns:
        R texts.
    """
    vectors, prompt_mask = backbone.embed_prompts([batch.prompts[place] for place in batch.prompt_of_rollout.tolist()])
    num_prompt_tokens, num_tokens = prompt_mask.sum(dim=1), 2 * batch.lengths + 1
    tokens = _interleaved(codec, batch)
    num_columns = vectors.shape[1] + tokens.shape[1] + MAX_ANSWER_TOKENS
    cache = backbone.make_cache(len(vectors), num_columns)
    backbone.read(vectors, cache)
    cache.trim(num_prompt_tokens)
    hidden = backbone.read(tokens, cache)
    cache.trim(num_prompt_tokens + num_tokens)
    hidden = hidden[torch.arange(len(hidden)), num_tokens - 1]
    written: list[Tensor] = []
    while True:
        token_id = backbone.text_logits(hidden).argmax(dim=-1)
        written.append(token_id)
        if len(written) == MAX_ANSWER_TOKENS or (torch.stack(written) == backbone.end_of_text).any(dim=0).all():
            return [backbone.decode(token_ids) for token_ids in torch.stack(written, dim=1).tolist()]
        hidden = backbone.read(backbone.embed_tokens(token_id)[:, None], cache)[:, 0]


def _interleaved(codec: RolloutCodec, batch: GroundingBatch) -> Tensor:
    """s0 a0 s1 ... sT of each rollout, padded at the end, shape (R, 2 T + 1, H) with the longest one's T."""
    lengths = batch.lengths.tolist()
    observations = codec.encode_observation(batch.observation).split(lengths)
    actions = codec.encode_action(batch.action).split(lengths)
    rows = [
        torch.cat([torch.stack([observation, action], dim=1).flatten(0, 1), final[None]])
        for observation, action, final in zip(
            observations, actions, codec.encode_observation(batch.final_observation), strict=True
        )
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
