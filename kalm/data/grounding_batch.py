"""The form in which rollouts reach grounding: flat over steps, without padding, all tasks together.

Shape letters: B prompts, R rollouts, n steps of all rollouts, O numbers in an observation, A numbers in a continuous
action.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kalm.core.rollout import Rollout
from kalm.data.selection import returns_to_go
from kalm.data.work_item import WorkItem


class GroundingTask(IntEnum):
    """What the language model is taught (KALM, section 3.1)."""

    GENERATION = 0  # goal in, rollout out
    DYNAMICS = 1  # states and actions in, next states out
    EXPLANATION = 2  # rollout in, goal out


class GeneralText(NamedTuple):
    """Texts that belong to no rollout, to be continued from their beginning.

    Attributes:
        texts: The texts.
        max_tokens: Tokens of each that are read, what a tokenizer puts in front included.
    """

    texts: Sequence[str] = ()
    max_tokens: int = 0


class ValidationBatch(NamedTuple):
    """What is validated on at a time, mostly of one kind.

    Attributes:
        rollouts: Held-out real rollouts, to be predicted and explained.
        items: Goals to imagine rollouts for.
        text: Held-out text.
    """

    rollouts: Sequence[Rollout] = ()
    items: Sequence[WorkItem] = ()
    text: GeneralText = GeneralText()


class GroundingBatch(NamedTuple):
    """Rollouts behind their prompts. Several rollouts may follow one prompt; they do not see each other.

    Attributes:
        prompts: The B prompts.
        prompt_of_rollout: Which of them each rollout follows, int64 of shape (R,), never falling.
        task: ``GroundingTask`` of each rollout, int64 of shape (R,).
        lengths: Steps of each rollout, int64 of shape (R,).
        observation: Before each step, float32 of shape (n, O); rollouts one after the other.
        action: Of each step, int64 of shape (n,) or float32 of shape (n, A).
        next_observation: After each step, float32 of shape (n, O).
        final_observation: After the last step of each rollout, float32 of shape (R, O).
        is_terminated: Whether the last step of each rollout met its goal, bool of shape (R,).
        return_to_go: Rewards of each step and of all later ones of its rollout added up, float32 of shape (n,).
        answers: For each rollout the text to be written behind it; empty but for explanation.
        general_text: Texts beside the rollouts.
    """

    prompts: list[str]
    prompt_of_rollout: Tensor
    task: Tensor
    lengths: Tensor
    observation: Tensor
    action: Tensor
    next_observation: Tensor
    final_observation: Tensor
    is_terminated: Tensor
    return_to_go: Tensor
    answers: list[str]
    general_text: GeneralText = GeneralText()


def batch_rollouts(rollouts: Sequence[Rollout], prompts: Sequence[str], task: GroundingTask) -> GroundingBatch:
    """Make a batch of rollouts in memory, one prompt each, without answers.

    Args:
        rollouts: R rollouts, none of them empty.
        prompts: R prompts.
        task: What they are for.
    """
    actions = np.concatenate([rollout.actions for rollout in rollouts])
    lengths = torch.tensor([len(rollout) for rollout in rollouts])
    rewards = torch.from_numpy(np.concatenate([rollout.rewards for rollout in rollouts]))
    return GroundingBatch(
        prompts=list(prompts),
        prompt_of_rollout=torch.arange(len(rollouts)),
        task=torch.full((len(rollouts),), int(task)),
        lengths=lengths,
        observation=torch.from_numpy(np.concatenate([r.observations[:-1] for r in rollouts]).astype(np.float32)),
        action=torch.from_numpy(actions.astype(np.int64 if actions.dtype.kind in "iu" else np.float32)),
        next_observation=torch.from_numpy(np.concatenate([r.observations[1:] for r in rollouts]).astype(np.float32)),
        final_observation=torch.from_numpy(np.stack([r.observations[-1] for r in rollouts]).astype(np.float32)),
        is_terminated=torch.tensor([bool(rollout.terminated[-1]) for rollout in rollouts]),
        return_to_go=returns_to_go(rewards, lengths),
        answers=[""] * len(rollouts),
    )


def join_batches(batches: Sequence[GroundingBatch]) -> GroundingBatch:
    """Put batches behind each other, so that the model runs once over all of them."""
    first_prompt = np.cumsum([0, *(len(batch.prompts) for batch in batches)])
    shifted = [batch.prompt_of_rollout + int(first) for batch, first in zip(batches, first_prompt, strict=False)]
    return GroundingBatch(
        prompts=[prompt for batch in batches for prompt in batch.prompts],
        prompt_of_rollout=torch.cat(shifted),
        task=torch.cat([batch.task for batch in batches]),
        lengths=torch.cat([batch.lengths for batch in batches]),
        observation=torch.cat([batch.observation for batch in batches]),
        action=torch.cat([batch.action for batch in batches]),
        next_observation=torch.cat([batch.next_observation for batch in batches]),
        final_observation=torch.cat([batch.final_observation for batch in batches]),
        is_terminated=torch.cat([batch.is_terminated for batch in batches]),
        return_to_go=torch.cat([batch.return_to_go for batch in batches]),
        answers=[answer for batch in batches for answer in batch.answers],
    )
