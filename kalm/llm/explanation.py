"""Rollout explanation: a rollout in, the words of its goal out.

Shape letters: R rollouts, L columns of prompts, S columns behind them, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kalm.data.grounding_batch import GroundingBatch
from kalm.llm.backbone import Backbone
from kalm.llm.rollout_codec import RolloutCodec

MAX_ANSWER_TOKENS = 48


@torch.inference_mode()
def write_answers(backbone: Backbone, codec: RolloutCodec, batch: GroundingBatch) -> list[str]:
    """The likeliest answer behind each rollout, token by token.

    Rollouts of equal length are written together, since the cache counts equally many tokens behind every prompt.

    Args:
        backbone: The grounded language model.
        codec: Its inputs for observations and actions.
        batch: Rollouts, each behind a prompt of its own.

    Returns:
        R texts.
    """
    answers = [""] * len(batch.lengths)
    starts = batch.lengths.cumsum(0) - batch.lengths
    for length in batch.lengths.unique().tolist():
        rows = (batch.lengths == length).nonzero().squeeze(-1)
        steps = starts[rows, None] + torch.arange(length, device=rows.device)
        observations = torch.cat([batch.observation[steps], batch.final_observation[rows, None]], dim=1)
        prompts = [batch.prompts[int(batch.prompt_of_rollout[row])] for row in rows]
        tokens = _interleave(codec.encode_observation(observations), codec.encode_action(batch.action[steps]))
        for row, token_ids in zip(rows.tolist(), _write(backbone, prompts, tokens).tolist(), strict=True):
            answers[row] = backbone.decode(token_ids)
    return answers


def _write(backbone: Backbone, prompts: list[str], tokens: Tensor) -> Tensor:
    """Token ids of the answers, int64 of shape (R, tokens written)."""
    vectors, prompt_mask = backbone.embed_prompts(prompts)
    cache = backbone.make_cache(prompt_mask, tokens.shape[1] + MAX_ANSWER_TOKENS)
    written: list[Tensor] = []
    for step in range(MAX_ANSWER_TOKENS + 2):
        hidden = backbone(vectors, cache.positions(vectors.shape[1]), cache.attention_mask(vectors.shape[1]), cache)
        if step == 0:  # that was the prompt
            vectors = tokens
            continue
        token_id = backbone.text_logits(hidden[:, -1]).argmax(dim=-1)
        written.append(token_id)
        if len(written) == MAX_ANSWER_TOKENS or (torch.stack(written) == backbone.end_of_text).any(dim=0).all():
            break
        vectors = backbone.embed_tokens(token_id)[:, None]
    return torch.stack(written, dim=1)


def _interleave(observations: Tensor, actions: Tensor) -> Tensor:
    """s0 a0 s1 ... sT: from (R, T + 1, H) and (R, T, H) to (R, 2 T + 1, H)."""
    pairs = torch.stack([observations[:, :-1], actions], dim=2).flatten(1, 2)
    return torch.cat([pairs, observations[:, -1:]], dim=1)
