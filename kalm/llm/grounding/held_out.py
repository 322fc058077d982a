"""What a grounded model makes of rollouts and texts that it did not learn from: predictions, and explanations.

Shape letters: R rollouts, T steps, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kalm.data.grounding_batch import GeneralText, GroundingBatch
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.grounding.losses import action_loss, change_loss, text_loss
from kalm.llm.grounding.reading import read_rollouts, read_texts
from kalm.llm.grounding.rollout_codec import RolloutCodec

MAX_ANSWER_TOKENS = 48
# A next state matches when every number is within this many standard deviations of the data.
_STATE_TOLERANCE = 0.2


@torch.inference_mode()
def prediction_metrics(backbone: Backbone, codec: RolloutCodec, batch: GroundingBatch) -> dict[str, Tensor]:
    """One-step predictions along real rollouts of training goals: losses, and how often they are right.

    Args:
        backbone: The grounded language model.
        codec: Its inputs and outputs for observations and actions.
        batch: Rollouts behind the prompts of generation.

    Returns:
        Metrics by name, one number a step, shape (n,) with n steps of all rollouts.
    """
    hidden = read_rollouts(backbone, codec, batch)
    action, change = codec.predict_action(hidden.observation), codec.predict_change(hidden.action)
    error = codec.apply_change(batch.observation, change) - batch.next_observation
    metrics = {
        "ground/held_out_action_loss": action_loss(action, batch.action),
        "ground/held_out_next_observation_loss": change_loss(
            change, codec.change(batch.observation, batch.next_observation)
        ),
        "imagine/train/state_match": (error.abs() <= _STATE_TOLERANCE * codec.observation_std).all(dim=-1).float(),
    }
    if codec.is_discrete:
        metrics["imagine/train/action_match"] = (action.argmax(dim=-1) == batch.action).float()
    return metrics


@torch.inference_mode()
def text_metrics(backbone: Backbone, text: GeneralText, device: torch.device) -> dict[str, Tensor]:
    """Loss of each token of general text; the exponential of its mean is the perplexity."""
    hidden, target = read_texts(backbone, text, device)
    return {"ground/held_out_general_text_loss": text_loss(backbone.text_logits(hidden), target)}


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
