"""Imagined rollouts to be made: what for, from where, with which luck.

Shape letters: M first observations to choose from, O numbers in an observation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kalm.core.errors import DataError
from kalm.core.goal import InstructedGoal
from kalm.envs.base import Domain

_MAX_TRIES = 100


@dataclass(frozen=True, eq=False)
class WorkItem:
    """Everything that decides an imagined rollout but the model.

    Attributes:
        instructed: The goal and the sentence that asks for it.
        start: Observation to start from, float32 of shape (O,).
        max_steps: Steps after which the rollout is truncated.
        seed: Seed of the rollout's own random draws, so that it does not depend on its batch.
    """

    instructed: InstructedGoal
    start: NDArray[np.float32]
    max_steps: int
    seed: int

    def identity(self, provenance: str) -> str:
        """Hash of goal, sentence, start, limit and seed, and of ``provenance``, which names model and prompt."""
        facts = json.dumps([self.instructed.to_json(), self.max_steps, self.seed, provenance], sort_keys=True)
        return hashlib.sha256(facts.encode() + self.start.astype("<f4").tobytes()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class WorkShard:
    """Work items that are imagined together and stored together.

    Attributes:
        name: Name of the shard; names sort in the order of the work.
        items: What to imagine.
    """

    name: str
    items: list[WorkItem]


def make_work_items(
    domain: Domain,
    instructed_goals: Sequence[InstructedGoal],
    num_rollouts: int,
    starts: NDArray[np.float32],
    seed: Sequence[int],
) -> list[WorkItem]:
    """Spread rollouts evenly over instructions, each from a start of its own at which its goal is not yet met.

    Args:
        domain: Whose goals they are.
        instructed_goals: Instructions to cycle through; fewer rollouts than that take evenly spaced ones.
        num_rollouts: Work items to make.
        starts: First observations of real rollouts, shape (M, O), for goals that the domain has no own ones for.
        seed: Numbers that decide the draws; item i depends on them and on i alone.

    Raises:
        DataError: If an instruction's goal is already met at every start that is tried.
    """
    count = len(instructed_goals)
    items = []
    for index in range(num_rollouts):
        place = (
            index % count if index < num_rollouts // count * count else index % count * count // (num_rollouts % count)
        )
        instructed = instructed_goals[place]
        rng = np.random.default_rng([*seed, index])
        start = _draw_start(domain, instructed, starts, rng)
        items.append(WorkItem(instructed, start, instructed.goal.max_steps, int(rng.integers(2**31))))
    return items


def _draw_start(
    domain: Domain, instructed: InstructedGoal, starts: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.float32]:
    own = domain.first_observation(instructed.goal, rng)
    if own is not None:
        return own.astype(np.float32)
    for _ in range(_MAX_TRIES):
        start = starts[rng.integers(len(starts))]
        if not instructed.goal.success(start):
            return start
    raise DataError(
        f"the goal of {instructed.instruction!r} is already met at each of {_MAX_TRIES} starts drawn from "
        f"{len(starts)} real rollouts; remove it, or collect rollouts that begin elsewhere"
    )
