"""Says in words what rollouts are for: the likeliest answer, or the one of several that best foretells the rollout.

An answer is written token by token behind the rollout. More than one can be drawn, and the model itself then asks of
each, as an instruction, how likely it is to take the recorded actions under it, and to end just where the rollout ends:
of the goals that a rollout happens to meet, it is for the one that its actions aim at. Nothing but the model is asked.

Shape letters: R rollouts, K answers to each, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from kalm.core.rollout import Rollout
from kalm.data.language_batches import GroundingBatch, GroundingTask
from kalm.language.prompts import generation_prompt
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.grounding.losses import action_loss
from kalm.llm.grounding.reading import read_rollouts
from kalm.llm.grounding.rollout_codec import RolloutCodec

MAX_ANSWER_TOKENS = 48
_ROLLOUTS_AT_ONCE = 256

Ask = Callable[[Sequence[Rollout], Sequence[str], GroundingTask], GroundingBatch]


@torch.inference_mode()
def write_answers(
    backbone: Backbone, codec: RolloutCodec, batch: GroundingBatch, num_answers: int = 1, seed: int = 0
) -> list[list[str]]:
    """Answers behind each of R rollouts, each of which has a prompt of its own.

    Args:
        backbone: The language model.
        codec: Of states and actions.
        batch: Rollouts and prompts, where the model is.
        num_answers: K; the first is the likeliest, token by token, the others are drawn.
        seed: Decides what is drawn.

    Returns:
        R lists of K answers, some of which may be alike.
    """
    vectors, prompt_mask = backbone.embed_prompts([batch.prompts[place] for place in batch.prompt_of_rollout.tolist()])
    vectors, prompt_mask, tokens, lengths = (
        part.repeat_interleave(num_answers, dim=0)
        for part in (vectors, prompt_mask, _interleaved(codec, batch), batch.lengths)
    )
    num_prompt_tokens, num_tokens = prompt_mask.sum(dim=1), 2 * lengths + 1
    cache = backbone.make_cache(len(vectors), vectors.shape[1] + tokens.shape[1] + MAX_ANSWER_TOKENS)
    backbone.read(vectors, cache)
    cache.trim(num_prompt_tokens)
    hidden = backbone.read(tokens, cache)
    cache.trim(num_prompt_tokens + num_tokens)
    hidden = hidden[torch.arange(len(hidden)), num_tokens - 1]
    is_drawn = torch.arange(len(hidden), device=hidden.device) % num_answers > 0
    generator = torch.Generator().manual_seed(seed)
    written: list[Tensor] = []
    while True:
        logits = backbone.text_logits(hidden)
        token_id = logits.argmax(dim=-1)
        if num_answers > 1:
            drawn = torch.multinomial(logits.float().softmax(-1).cpu(), 1, generator=generator).squeeze(1)
            token_id = torch.where(is_drawn, drawn.to(token_id.device), token_id)
        written.append(token_id)
        if len(written) == MAX_ANSWER_TOKENS or (torch.stack(written) == backbone.end_of_text).any(dim=0).all():
            answers = [backbone.decode(token_ids) for token_ids in torch.stack(written, dim=1).tolist()]
            return [answers[first : first + num_answers] for first in range(0, len(answers), num_answers)]
        hidden = backbone.read(backbone.embed_tokens(token_id)[:, None], cache)[:, 0]


@torch.inference_mode()
def foretelling(backbone: Backbone, codec: RolloutCodec, batch: GroundingBatch) -> Tensor:
    """How likely each rollout's actions and its end are behind its prompt: log-probability, shape (R,).

    Continuous actions have no probability; for them the negative squared error of what the model would do stands in.
    """
    hidden = read_rollouts(backbone, codec, batch)
    acts = -action_loss(codec.predict_action(hidden.observation), batch.action)
    goes_on = functional.logsigmoid(-codec.predict_end(hidden.observation))
    rollout = torch.arange(len(batch.lengths), device=acts.device).repeat_interleave(batch.lengths)
    ends = functional.logsigmoid(codec.predict_end(hidden.final))
    return ends.index_add(0, rollout, acts + goes_on)


def best_answers(
    backbone: Backbone, codec: RolloutCodec, ask: Ask, rollouts: Sequence[Rollout], answers: Sequence[Sequence[str]]
) -> list[str]:
    """Of some answers to each of R rollouts the one that best foretells it, the earliest of equals.

    ``ask`` makes a batch of rollouts, each behind a prompt, where the model is.
    """
    pairs = [(rollout, answer) for rollout, some in zip(rollouts, answers, strict=True) for answer in some]
    scores = []
    for first in range(0, len(pairs), _ROLLOUTS_AT_ONCE):
        some, said = zip(*pairs[first : first + _ROLLOUTS_AT_ONCE], strict=True)
        # An empty answer is no instruction; it is tried as what it amounts to.
        prompts = [generation_prompt(answer.strip() or "nothing") for answer in said]
        scores.append(foretelling(backbone, codec, ask(some, prompts, GroundingTask.GENERATION)).cpu())
    of_rollouts = torch.cat(scores).split([len(own) for own in answers])
    return [own[int(score.argmax())] for own, score in zip(answers, of_rollouts, strict=True)]


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
