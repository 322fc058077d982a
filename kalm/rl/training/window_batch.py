"""What a loss sees of a minibatch of windows: consecutive steps of a rollout, for policies that read a history.

Shape letters: K updates a training step, S policies side by side, B batch, T steps of a window, O observation, E goal
embedding, A action, Z numbers of noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tensordict import TensorDictBase
from torch import Tensor

from kalm.core.names import ACTION, INSTRUCTION_ID, OBSERVATION, PADDING_MASK, RETURN_TO_GO, STEP


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
        noise: Standard normal numbers, shape (B, Z), Z being the algorithm's ``noise_size``.
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
    fields = zip(
        normalize_observation(stacked.get(OBSERVATION)).unbind(0),
        stacked.get(INSTRUCTION_ID)[..., 0].long().unbind(0),
        stacked.get(ACTION).unbind(0),
        normalize_return(stacked.get(RETURN_TO_GO)).unbind(0),
        stacked.get(STEP).long().unbind(0),
        padding_mask.unbind(0),
        noise.unbind(0),
        _step_weight(padding_mask, weight, num_policies).unbind(0),
        strict=True,
    )
    for observation, instruction_id, action, return_to_go, step, is_real, random, counts in fields:
        yield WindowBatch(
            observation=observation,
            goal_embedding=goal_embeddings.index_select(0, instruction_id),
            action=action,
            return_to_go=return_to_go,
            step=step,
            padding_mask=is_real,
            noise=random,
            weight=counts,
        )


def _step_weight(padding_mask: Tensor, weight: Tensor | None, num_policies: int) -> Tensor:
    """Weights whose mean over a policy's steps is a mean over its real steps: (K, S * B, T), (K, S * B, T)."""
    is_real = padding_mask.unflatten(1, (num_policies, -1)).float()
    scaled = (is_real / is_real.mean((2, 3), keepdim=True)).flatten(1, 2)
    return scaled if weight is None else scaled * weight
