"""What a loss sees of a minibatch: plain tensors, normalised, with the goal embeddings gathered.

Tensors are taken out of the TensorDict once for K updates, because taking them out K times costs as much as a small
forward pass.

Shape letters: K updates a training step, S policies side by side, B batch, T steps of a window, O observation, E goal
embedding, A action, I instructions, Z numbers of noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from kalm.core.errors import require
from kalm.core.names import (
    ACTION,
    INSTRUCTION_ID,
    NEXT_OBSERVATION,
    OBSERVATION,
    PADDING_MASK,
    RETURN_TO_GO,
    REWARD,
    SOURCE,
    STEP,
    TERMINATED,
    WEIGHT,
    Source,
)


@dataclass(frozen=True, slots=True)
class TransitionBatch:
    """One minibatch of transitions.

    ``truncated`` is absent on purpose: running out of time says nothing about the value of what follows, so no loss
    may read it. The goal of a rollout never changes, so ``goal_embedding`` serves the next observation too.

    Attributes:
        observation: Normalised, shape (B, O).
        goal_embedding: Normalised, shape (B, E).
        action: Shape (B,) int64 in [0, A), or (B, A) float32 in [-1, 1].
        reward: Shape (B,).
        next_observation: Normalised, shape (B, O).
        terminated: True where the task ended, so that nothing follows; shape (B,).
        noise: Standard normal numbers for losses that draw at random, shape (B, Z), Z being the algorithm's
            ``noise_size``. They are a function of seed and update alone; no loss draws numbers of its own.
        weight: How much each transition's losses count, shape (B,); None if all count 1. No loss reads it: the base
            applies it to their sum.
    """

    observation: Tensor
    goal_embedding: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminated: Tensor
    noise: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """One minibatch of windows. Padding stands at the end of a window and repeats its last real step.

    A loss of windows has one number a step, shape (B, T), 0 where the step is padding.

    Attributes:
        observation: Normalised, shape (B, T, O).
        goal_embedding: Normalised, of the window's rollout, shape (B, E).
        action: Shape (B, T) int64 in [0, A), or (B, T, A) float32 in [-1, 1].
        return_to_go: Normalised sum of this and all later rewards of the rollout, shape (B, T).
        step: Number of the step in its rollout, from 0; shape (B, T), int64.
        padding_mask: True = real step, shape (B, T).
        noise: As for transitions, shape (B, Z).
        weight: How much the losses of each step count, shape (B, T): 0 for padding, and such that the mean over all
            steps is the mean over the real ones. No loss reads it: the base applies it to their sum.
    """

    observation: Tensor
    goal_embedding: Tensor
    action: Tensor
    return_to_go: Tensor
    step: Tensor
    padding_mask: Tensor
    noise: Tensor
    weight: Tensor | None = None


def unstack(
    stacked: TensorDictBase,
    goal_embeddings: Tensor,
    normalize: Callable[[Tensor], Tensor],
    noise: Tensor,
    weight: Tensor | None = None,
) -> Iterator[TransitionBatch]:
    """Split K stacked minibatches into K batches, without changing ``stacked``.

    Args:
        stacked: Transitions of batch size (K, B); ``instruction_id`` holds rows of ``goal_embeddings``.
        goal_embeddings: One normalised row an instruction, shape (I, E).
        normalize: Applied to observations of shape (K, B, O).
        noise: Standard normal numbers, shape (K, B, Z).
        weight: How much each transition counts, shape (K, B); None if all count 1.
    """
    columns = {
        "observation": normalize(stacked.get(OBSERVATION)),
        "action": stacked.get(ACTION),
        "reward": stacked.get(REWARD),
        "next_observation": normalize(stacked.get(NEXT_OBSERVATION)),
        "terminated": stacked.get(TERMINATED),
        "noise": noise,
    }
    return _split(TransitionBatch, columns, stacked.get(INSTRUCTION_ID), goal_embeddings, weight)


def unstack_windows(
    stacked: TensorDictBase,
    goal_embeddings: Tensor,
    normalize_observation: Callable[[Tensor], Tensor],
    normalize_return: Callable[[Tensor], Tensor],
    noise: Tensor,
    weight: Tensor | None,
    num_policies: int = 1,
) -> Iterator[WindowBatch]:
    """Split K stacked minibatches of windows into K batches, without changing ``stacked``.

    Args:
        stacked: Windows of batch size (K, S * B, T); ``instruction_id`` holds rows of ``goal_embeddings``.
        goal_embeddings: One normalised row an instruction, shape (I, E).
        normalize_observation: Applied to observations of shape (K, S * B, T, O).
        normalize_return: Applied to returns-to-go of shape (K, S * B, T).
        noise: Standard normal numbers, shape (K, S * B, Z).
        weight: How much each step counts beside its being real, shape (K, S * B, T); None if all count 1.
        num_policies: Policies side by side, S; each one's mean is over its own real steps.
    """
    padding_mask = stacked.get(PADDING_MASK)
    columns = {
        "observation": normalize_observation(stacked.get(OBSERVATION)),
        "action": stacked.get(ACTION),
        "return_to_go": normalize_return(stacked.get(RETURN_TO_GO)),
        "step": stacked.get(STEP).long(),
        "padding_mask": padding_mask,
        "noise": noise,
    }
    weight = _step_weight(padding_mask, weight, num_policies)
    return _split(WindowBatch, columns, stacked.get(INSTRUCTION_ID)[..., 0], goal_embeddings, weight)


def _split(
    kind: type[Any],
    columns: Mapping[str, Tensor],
    instruction_id: Tensor,
    goal_embeddings: Tensor,
    weight: Tensor | None,
) -> Iterator[Any]:
    """One batch for each of K rows; goal embeddings are gathered batch by batch, so that the rows stay in the cache."""
    weights = [None] * len(instruction_id) if weight is None else weight.unbind(0)
    parts = zip(*(column.unbind(0) for column in columns.values()), strict=True)
    for values, instructions, counts in zip(parts, instruction_id.long().unbind(0), weights, strict=True):
        goal_embedding = goal_embeddings.index_select(0, instructions)
        yield kind(**dict(zip(columns, values, strict=True)), goal_embedding=goal_embedding, weight=counts)


def _step_weight(padding_mask: Tensor, weight: Tensor | None, num_policies: int) -> Tensor:
    """Weights whose mean over a policy's steps is a mean over its real steps: (K, S * B, T), (K, S * B, T)."""
    is_real = padding_mask.unflatten(1, (num_policies, -1)).float()
    scaled = (is_real / is_real.mean((2, 3), keepdim=True)).flatten(1, 2)
    return scaled if weight is None else scaled * weight


class Normalizer(nn.Module):
    """Maps x to (x - mean) / std; until it is given statistics, to x.

    The statistics are those of the data; they are part of the policy and travel with its checkpoint.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        """Make room for the statistics of vectors with ``size`` entries."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Use these from now on.

        Args:
            mean: Shape (size,).
            std: Shape (size,), or one number for all entries; an entry of 0 scales nothing.
        """
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def forward(self, values: Tensor) -> Tensor:
        """Normalised ``values``, shape (..., size)."""
        return (values - self.mean) / self.std


class TransitionWeights(nn.Module):
    """Multiplies the weight of a transition's source by the weight that came with it."""

    of_source: Tensor | None

    def __init__(self, source_weights: Mapping[str, float] | None) -> None:
        """Check and keep the weights of sources, by label; 1 where not given."""
        super().__init__()
        given, labels = dict(source_weights or {}), [source.label for source in Source]
        is_met = set(given) <= set(labels) and all(weight >= 0 for weight in given.values())
        require(is_met, "source_weights", source_weights, f"numbers of 0 or more for {' and '.join(labels)}")
        weights = torch.tensor([given.get(label, 1.0) for label in labels])
        self.register_buffer("of_source", weights if set(given.values()) - {1.0} else None, persistent=False)

    def forward(self, batch: TensorDictBase) -> Tensor | None:
        """Weights of a batch, of its shape; None if all transitions count alike, which costs nothing."""
        weight = batch.get(WEIGHT, None)
        if self.of_source is None:
            return weight
        of_source = self.of_source[batch.get(SOURCE).long()]
        return of_source if weight is None else of_source * weight
