"""What a loss sees of a minibatch: plain tensors, normalised, with the goal embeddings gathered.

Tensors are taken out of the TensorDict once for K updates, because taking them out K times costs as much as a small
forward pass.

Shape letters: K updates a training step, B batch, O observation, E goal embedding, A action, Z numbers of noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tensordict import TensorDictBase
from torch import Tensor

from kalm.core.names import ACTION, INSTRUCTION_ID, NEXT_OBSERVATION, OBSERVATION, REWARD, TERMINATED


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
        goal_embeddings: One normalised row an instruction, shape (I, E). It is gathered minibatch by minibatch, so that
            the rows stay in the cache.
        normalize: Applied to observations of shape (K, B, O).
        noise: Standard normal numbers, shape (K, B, Z).
        weight: How much each transition counts, shape (K, B); None if all count 1.
    """
    fields = zip(
        normalize(stacked.get(OBSERVATION)).unbind(0),
        stacked.get(INSTRUCTION_ID).long().unbind(0),
        stacked.get(ACTION).unbind(0),
        stacked.get(REWARD).unbind(0),
        normalize(stacked.get(NEXT_OBSERVATION)).unbind(0),
        stacked.get(TERMINATED).unbind(0),
        noise.unbind(0),
        [None] * len(noise) if weight is None else weight.unbind(0),
        strict=True,
    )
    for observation, instruction_id, action, reward, next_observation, terminated, random, counts in fields:
        yield TransitionBatch(
            observation=observation,
            goal_embedding=goal_embeddings.index_select(0, instruction_id),
            action=action,
            reward=reward,
            next_observation=next_observation,
            terminated=terminated,
            noise=random,
            weight=counts,
        )
