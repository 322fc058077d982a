"""Vetoes by a learned model of the world's dynamics: it does not believe a step, or that a goal was met by such steps.

Shape letters: B transitions, R rollouts, O numbers in an observation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.goal import Goal
from kalm.core.rollout import Rollout
from kalm.envs.base import Domain
from kalm.judging.judge import Judge, Verdict, verdict


class DynamicsModel(Protocol):
    """What the vetoes ask of a model that learned from real steps; nothing here knows how it learned."""

    error_limit: float

    @property
    def num_members(self) -> int:
        """Worlds that it imagines, each erring in its own way."""

    def errors(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """How far steps are from what it expects, shape (B,); above ``error_limit`` it does not believe them."""

    def num_confirming(self, domain: Domain, rollouts: Sequence[Rollout]) -> NDArray[np.int64]:
        """In how many of its worlds the actions of each rollout meet its goal, shape (R,)."""


class OffLearnedDynamics(Judge):
    """Marks each step that the model does not believe; its score is the share of steps that it believes."""

    name = "off_learned_dynamics"
    is_veto: ClassVar[bool] = True

    def __init__(self, model: DynamicsModel, provenance: Mapping[str, Any]) -> None:
        """Name the model, and say in plain JSON types which it is."""
        self._model, self._provenance = model, dict(provenance)

    @property
    def provenance(self) -> dict[str, Any]:
        """Which model."""
        return {"judge": "dynamics", **self._provenance}

    def judge(self, goals: Sequence[Goal | None], rollouts: Sequence[Rollout]) -> Verdict:
        """Count the steps of each rollout whose error is above the limit; goals do not matter."""
        num_off = np.array([self._num_off(rollout) for rollout in rollouts], dtype=np.int32)
        num_steps = np.array(list(map(len, rollouts)), dtype=np.int64)
        return verdict(num_off == 0, 1 - num_off / num_steps, num_marked=num_off)

    @torch.inference_mode()
    def _num_off(self, rollout: Rollout) -> int:
        observations = torch.from_numpy(rollout.observations.astype(np.float32))
        errors = self._model.errors(observations[:-1], torch.from_numpy(rollout.actions), observations[1:])
        return int((errors > self._model.error_limit).sum())


class Unconfirmed(Judge):
    """Marks a rollout that met its goal, but whose actions would do so in too few of the model's own worlds.

    Its score is the share of worlds in which they would. It abstains on rollouts that do not claim to meet their goal.
    """

    name = "unconfirmed"
    is_veto: ClassVar[bool] = True

    def __init__(
        self, model: DynamicsModel, domain: Domain, least_confirming: int, provenance: Mapping[str, Any]
    ) -> None:
        """Name the model, its world, and of how many of the model's worlds a success needs the consent."""
        self._model, self._domain, self._least_confirming = model, domain, least_confirming
        self._provenance = dict(provenance)

    @property
    def provenance(self) -> dict[str, Any]:
        """Which model, and how many of its worlds must agree."""
        return {"judge": "dynamics", "least_confirming": self._least_confirming, **self._provenance}

    def judge(self, goals: Sequence[Goal | None], rollouts: Sequence[Rollout]) -> Verdict:
        """Ask every world about every rollout at once; a rollout names its goal itself."""
        num_confirming = self._model.num_confirming(self._domain, rollouts) if rollouts else np.zeros(0, np.int64)
        claims = np.array([rollout.is_success for rollout in rollouts], dtype=np.bool_)
        is_confirmed = num_confirming >= self._least_confirming
        score = num_confirming / self._model.num_members
        return verdict(is_confirmed, score, abstained=~claims, num_marked=claims & ~is_confirmed)
