"""What a loss sees of a minibatch: plain tensors, normalised, with the goal embeddings gathered.

Tensors are taken out of the TensorDict once for K updates, because taking them out K times costs as much as a small
forward pass.

Shape letters: K updates a training step, B batch, T steps of a window, O observation, E goal embedding, A action,
I instructions, Z numbers of noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from kalm.core.errors import DataError, KalmError, require
from kalm.core.names import (
    ACTION,
    INSTRUCTION_ID,
    NEXT_OBSERVATION,
    OBSERVATION,
    REWARD,
    SOURCE,
    TERMINATED,
    WEIGHT,
    Source,
)
from kalm.core.specs import GridObservation, Spec

if TYPE_CHECKING:
    from kalm.data.policy_data import PolicyData


@dataclass(frozen=True, slots=True)
class TransitionBatch:
    """One minibatch of transitions.

    ``truncated`` is absent on purpose: running out of time says nothing about the value of what follows, so no loss
    may read it. The goal of a rollout never changes, so ``goal_embedding`` serves the next observation too.

    Noise is Z standard normal numbers a row, Z being the algorithm's ``noise_size``, for losses that draw at random: a
    function of seed and update alone; no loss draws numbers of its own. Nor does one read the weight, by which the
    losses of a row count: the base applies it to their sum.
    """

    observation: Tensor  # normalised, (B, O), or a grid, (B, W, H, 2)
    goal_embedding: Tensor  # normalised, (B, E)
    action: Tensor  # (B,) int64 in [0, A), or (B, A) float32 in [-1, 1]
    reward: Tensor  # (B,)
    next_observation: Tensor  # normalised, (B, O)
    terminated: Tensor  # True where the task ended, so that nothing follows, (B,)
    noise: Tensor  # (B, Z)
    weight: Tensor | None = None  # (B,); None if all count 1


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """One minibatch of windows. Padding stands at the end of a window and repeats its last real step.

    A loss of windows has one number a step, shape (B, T), 0 where the step is padding. The weight is 0 for padding, and
    such that the mean over all steps is the mean over the real ones.
    """

    observation: Tensor  # normalised, (B, T, O), or grids, (B, T, W, H, 2)
    goal_embedding: Tensor  # normalised, of the window's rollout, (B, E)
    action: Tensor  # (B, T) int64 in [0, A), or (B, T, A) float32 in [-1, 1]
    return_to_go: Tensor  # normalised sum of this and all later rewards of the rollout, (B, T)
    step: Tensor  # number of the step in its rollout, from 0, (B, T) int64
    padding_mask: Tensor  # True = real step, (B, T)
    noise: Tensor  # as for transitions, (B, Z)
    weight: Tensor | None = None  # (B, T)


def unstack(
    stacked: TensorDictBase,
    goal_embeddings: Tensor,
    normalize: Callable[[Tensor], Tensor],
    noise: Tensor,
    weight: Tensor | None = None,
) -> Iterator[TransitionBatch]:
    """Split K stacked minibatches of transitions into K batches, without changing ``stacked``.

    Args:
        stacked: Batch size (K, B); ``instruction_id`` holds rows of ``goal_embeddings``.
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
    return split(TransitionBatch, columns, stacked.get(INSTRUCTION_ID), goal_embeddings, weight)


def split(
    kind: type[Any],
    columns: Mapping[str, Tensor],
    instruction_id: Tensor,
    goal_embeddings: Tensor,
    weight: Tensor | None,
) -> Iterator[Any]:
    """One ``kind`` of batch for each of K rows of ``columns``, which has its fields but for goal embedding and weight.

    Goal embeddings are gathered batch by batch, so that the rows stay in the cache.
    """
    weights = [None] * len(instruction_id) if weight is None else weight.unbind(0)
    parts = zip(*(column.unbind(0) for column in columns.values()), strict=True)
    for values, instructions, counts in zip(parts, instruction_id.long().unbind(0), weights, strict=True):
        goal_embedding = goal_embeddings.index_select(0, instructions)
        yield kind(**dict(zip(columns, values, strict=True)), goal_embedding=goal_embedding, weight=counts)


class Normalizer(nn.Module):
    """Maps x to (x - mean) / std, held within a limit; until it is given statistics, x counts as normalised.

    What no recorded step showed, such as a tipped puck, can be hundreds of standard deviations away, and a network says
    nothing sensible there: its answer follows that one number. Normalisers of running statistics clip for the same
    reason, at 10 (OpenAI Baselines' and Stable-Baselines3's ``VecNormalize``).

    Statistics and limit are part of the policy and travel with its checkpoint. One from before there was a limit has
    none, and acts as it did.
    """

    mean: Tensor
    std: Tensor
    limit: Tensor

    def __init__(self, size: int, limit: float = math.inf) -> None:
        """Read vectors of ``size`` entries; normalised, they end at ``limit`` standard deviations to either side."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("limit", torch.tensor(limit))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Use these, of shape (size,) or one number for all entries; a ``std`` of 0 scales nothing."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    def forward(self, values: Tensor) -> Tensor:
        """Normalised ``values``, shape (..., size)."""
        return ((values - self.mean) / self.std).clamp(-self.limit, self.limit)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load as every module does; see the class on checkpoints without a limit."""
        state_dict.setdefault(f"{prefix}limit", torch.tensor(math.inf))
        super()._load_from_state_dict(state_dict, prefix, *rest)


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


def check_fit(algorithm: str, spec: Spec, sequence_length: int, data: PolicyData, max_updates: int) -> None:
    """Refuse data that a policy cannot read, and updates that training steps cannot hit exactly.

    Raises:
        DataError: If the sizes, or the lengths of windows, differ.
        KalmError: If ``max_updates``, that is ``trainer.max_steps``, is no multiple of the updates of a training step.
    """
    if data.spec != spec:
        raise DataError(f"the policy was built for {spec}, but the data have {data.spec}; give both one domain")
    if isinstance(spec.observation, GridObservation):
        _ = data.domain.agent_grid  # says if its grids cannot be read
    if data.sequence_length != sequence_length:
        raise DataError(
            f"{algorithm} reads windows of {sequence_length} steps, but data.sequence_length is "
            f"{data.sequence_length}; set data.sequence_length to {sequence_length}"
        )
    per_step = data.updates_per_step
    if max_updates % per_step and max_updates != -1:
        raise KalmError(
            f"trainer.max_steps is {max_updates}, which is no multiple of data.updates_per_step {per_step}; "
            f"use {max_updates // per_step * per_step or per_step} updates, or an updates_per_step that divides it"
        )
