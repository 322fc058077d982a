"""Imagination (KALM, section 3.2): a goal and a real first state in, a rollout out.

All rollouts of a batch take their steps together, two tokens a step (the state, then the action), each token run
through the model once thanks to a cache. A rollout stops on its own: when its goal is met by the domain's rule, when
the model says that it ends, or at its limit; stopped rollouts leave the batch.

Shape letters: B rollouts, O numbers in an observation, A actions or numbers in an action, H hidden size, T longest
limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.data.rollout import Rollout
from kalm.data.work_item import WorkItem
from kalm.envs.base import Domain, success_of_each
from kalm.language.prompts import generation_prompt
from kalm.llm.backbone import Backbone
from kalm.llm.rollout_codec import RolloutCodec
from kalm.types import Source

# Stopped rollouts are dropped once they are this part of the batch: dropping copies the cache, keeping wastes work.
_DROP_FRACTION = 0.125

GoalReached = Callable[[NDArray[np.int64], NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[np.bool_]]


@dataclass(frozen=True)
class Sampling:
    """How freely rollouts are drawn.

    Attributes:
        temperature: 0 takes the likeliest action. Else the scores of discrete actions are divided by it; to a
            continuous action it adds Gaussian noise of this standard deviation.
        end_threshold: Probability of the end at which a rollout stops.
    """

    temperature: float = 0.0
    end_threshold: float = 0.5

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (the likeliest action) or more")
        if not 0 < self.end_threshold <= 1:
            raise ValueError(f"end_threshold is {self.end_threshold}; it must be in (0, 1]")


@dataclass(frozen=True)
class Generated:
    """What the model made for one work item.

    Attributes:
        observations: Shape (T + 1, O), with this rollout's own T.
        actions: Shape (T,) or (T, A).
        stopped_by: ``goal``, ``end`` or ``limit``.
    """

    observations: NDArray[np.float32]
    actions: NDArray[Any]
    stopped_by: str


class Reader(Protocol):
    """Runs the model over the next token of every rollout in the batch."""

    def extend(self, vectors: Tensor) -> Tensor:
        """Hidden vectors of the next tokens, shape (B, H), from their vectors, shape (B, H)."""

    def keep(self, rows: Tensor) -> None:
        """Drop all rollouts but these."""


class CachedReader:
    """Remembers keys and values: each token is run once."""

    def __init__(self, backbone: Backbone, prompts: Sequence[str], max_new_tokens: int) -> None:
        """Read the prompts."""
        vectors, prompt_mask = backbone.embed_prompts(prompts)
        self._backbone = backbone
        self._cache = backbone.make_cache(prompt_mask, max_new_tokens)
        self._run(vectors)

    def extend(self, vectors: Tensor) -> Tensor:  # noqa: D102
        return self._run(vectors[:, None])[:, 0]

    def keep(self, rows: Tensor) -> None:  # noqa: D102
        self._cache.keep(rows)

    def _run(self, vectors: Tensor) -> Tensor:
        size = vectors.shape[1]
        hidden: Tensor = self._backbone(
            vectors, self._cache.positions(size), self._cache.attention_mask(size), self._cache
        )
        return hidden


def imagine(
    backbone: Backbone, codec: RolloutCodec, domain: Domain, items: Sequence[WorkItem], sampling: Sampling
) -> list[Rollout]:
    """Imagine one rollout for each work item and let the domain judge it.

    Args:
        backbone: The grounded language model.
        codec: Its inputs and outputs for observations and actions.
        domain: Whose rules say when a goal is met, what a step is worth and which steps are implausible.
        items: What to imagine.
        sampling: How freely.

    Returns:
        Rollouts in the order of ``items``, with how each stopped and its seed as provenance.
    """
    goals = [item.instructed.goal for item in items]

    def reached(
        rows: NDArray[np.int64], before: NDArray[Any], action: NDArray[Any], after: NDArray[Any]
    ) -> NDArray[np.bool_]:
        return success_of_each(domain, [goals[row] for row in rows], after, before, action)

    limits = np.array([item.max_steps for item in items])
    reader = CachedReader(backbone, [generation_prompt(item.instructed.instruction) for item in items], 2 * max(limits))
    generated = generate(
        reader,
        codec,
        np.stack([item.start for item in items]),
        limits,
        [item.seed for item in items],
        reached,
        sampling,
    )
    return [
        domain.label_rollout(
            item.instructed, made.observations, made.actions, Source.IMAGINARY,
            {"seed": item.seed, "stopped_by": made.stopped_by},
        )
        for item, made in zip(items, generated, strict=True)
    ]  # fmt: skip


@torch.inference_mode()
def generate(
    reader: Reader,
    codec: RolloutCodec,
    starts: NDArray[np.float32],
    limits: NDArray[np.int64],
    seeds: Sequence[int],
    reached: GoalReached,
    sampling: Sampling,
) -> list[Generated]:
    """Take steps until every rollout has stopped.

    Args:
        reader: Has read the prompt of each rollout.
        codec: Inputs and outputs for observations and actions.
        starts: First observations, shape (B, O).
        limits: Most steps of each rollout, shape (B,).
        seeds: Seed of each rollout's own draws.
        reached: Says for rollouts (their indices) and their last step (observation before, action, observation after)
            whether the goal has been met.
        sampling: How freely actions are drawn.
    """
    record = _Record(starts, limits)
    draws = _draws(codec, seeds, int(limits.max())) if sampling.temperature else None
    rows = np.arange(len(starts))  # the rollout that each row of the reader belongs to
    observation = torch.from_numpy(starts).to(codec.observation_mean.device)
    for step in range(int(limits.max())):
        hidden = reader.extend(codec.encode_observation(observation))
        if step:
            ended = torch.sigmoid(codec.predict_end(hidden)) >= sampling.end_threshold
            record.stop(rows[ended.cpu().numpy()], "end")
        noise = None if draws is None else draws[rows, step]
        action = _choose(codec, hidden, noise, sampling.temperature)
        hidden = reader.extend(codec.encode_action(action))
        next_observation = codec.apply_change(observation, codec.predict_change(hidden))
        before, taken, after = (tensor.cpu().numpy() for tensor in (observation, action, next_observation))
        record.add(rows, step, taken, after)
        goal_met = reached(rows, before, taken, after)
        record.stop(rows[goal_met], "goal")
        record.stop(rows[limits[rows] == step + 1], "limit")
        going = record.is_going(rows)
        observation = next_observation
        if not going.any():
            break
        if (~going).mean() >= _DROP_FRACTION:
            kept = torch.from_numpy(np.flatnonzero(going))
            reader.keep(kept)
            rows, observation = rows[going], observation[kept]
    return record.generated()


class _Record:
    """Collects steps; what comes after a rollout has stopped is not counted."""

    def __init__(self, starts: NDArray[np.float32], limits: NDArray[np.int64]) -> None:
        self._observations = np.repeat(starts[:, None], limits.max() + 1, axis=1)
        self._actions: NDArray[Any] | None = None
        self._lengths = np.zeros(len(starts), dtype=np.int64)
        self._stopped_by = np.full(len(starts), "", dtype="U5")

    def add(self, rows: NDArray[np.int64], step: int, action: NDArray[Any], observation: NDArray[Any]) -> None:
        if self._actions is None:
            shape = len(self._lengths), self._observations.shape[1] - 1, *action.shape[1:]
            self._actions = np.zeros(shape, dtype=action.dtype)
        self._actions[rows, step] = action
        self._observations[rows, step + 1] = observation
        self._lengths[rows[self.is_going(rows)]] += 1

    def stop(self, rows: NDArray[np.int64], reason: str) -> None:
        self._stopped_by[rows[self.is_going(rows)]] = reason

    def is_going(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self._stopped_by[rows] == ""

    def generated(self) -> list[Generated]:
        assert self._actions is not None
        return [
            Generated(self._observations[row, : size + 1], self._actions[row, :size], str(self._stopped_by[row]))
            for row, size in enumerate(self._lengths)
        ]


def _choose(codec: RolloutCodec, hidden: Tensor, noise: NDArray[Any] | None, temperature: float) -> Tensor:
    """The next action of each row, int64 of shape (B,) or float of shape (B, A)."""
    prediction = codec.predict_action(hidden)
    if not codec.is_discrete:
        wanted = prediction if noise is None else prediction + temperature * torch.from_numpy(noise).to(hidden.device)
        return wanted.clamp(-1, 1)
    if noise is None:
        return prediction.argmax(dim=-1)
    cumulative = torch.softmax(prediction.double() / temperature, dim=-1).cumsum(dim=-1)
    drawn = torch.searchsorted(cumulative, torch.from_numpy(noise).to(hidden.device)[:, None]).squeeze(-1)
    return drawn.clamp(max=prediction.shape[-1] - 1)


def _draws(codec: RolloutCodec, seeds: Sequence[int], max_steps: int) -> NDArray[Any]:
    """Each rollout's own luck: uniform (B, T), or normal (B, T, A) where actions are continuous."""
    generators = [np.random.default_rng(seed) for seed in seeds]
    if codec.is_discrete:
        return np.stack([generator.random(max_steps) for generator in generators])
    shape = max_steps, codec.action_size
    return np.stack([generator.standard_normal(shape, dtype=np.float32) for generator in generators])
