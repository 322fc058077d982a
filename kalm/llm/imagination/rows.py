"""Which rollout each row of the batch belongs to, and the steps that it has taken.

Shape letters: R rows, O numbers in an observation, A actions or numbers in an action, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.goal import Goal
from kalm.data.language_batches import WorkItem
from kalm.llm.grounding.rollout_codec import RolloutCodec

# Whether goals have been met, bool of shape (B,), by one step of a rollout for each: observations before it, shape
# (B, O), actions, observations after it.
GoalTest = Callable[[Sequence[Goal], NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[np.bool_]]


@dataclass(frozen=True)
class Generated:
    """What the model made for one work item."""

    observations: NDArray[np.float32]  # shape (T + 1, O), with this rollout's own T
    actions: NDArray[Any]  # shape (T,) or (T, A)
    stopped_by: str  # goal, end or limit


class Plan(Protocol):
    """One rollout in the making, out of one or more pieces that are imagined one after the other.

    Attributes:
        next_item: What to imagine next; None if nothing more is needed.
    """

    next_item: WorkItem | None

    def add(self, piece: Generated) -> None:
        """Take what was imagined for ``next_item``, and decide what is next."""


class Rows:
    """Steps of R rollouts, in arrays that grow with the longest.

    Attributes:
        observation: Where each rollout is, shape (R, O), on the model's device.
    """

    def __init__(self, codec: RolloutCodec, num_rows: int, draws: bool) -> None:
        """Begin with free rows; where actions are drawn each rollout needs luck of its own."""
        self._plans, self._goals = np.full((2, num_rows), None)
        self._length, self._limit = np.zeros((2, num_rows), dtype=np.int64)
        observation_size = len(codec.observation_mean)
        self._observations = np.zeros((num_rows, 1, observation_size), dtype=np.float32)
        action_shape = () if codec.is_discrete else (codec.action_size,)
        self._actions = np.zeros((num_rows, 0, *action_shape), dtype=np.int64 if codec.is_discrete else np.float32)
        noise_type = np.float64 if codec.is_discrete else np.float32
        self._noise = np.zeros((num_rows, 0, *action_shape), dtype=noise_type) if draws else None
        self.observation = torch.zeros(num_rows, observation_size, device=codec.observation_mean.device)

    def __len__(self) -> int:
        """Rows, R."""
        return len(self._plans)

    @property
    def free(self) -> NDArray[np.int64]:
        """Rows without a rollout."""
        return np.flatnonzero(self._limit == 0)

    @property
    def noise(self) -> Tensor | None:
        """The luck of each rollout in its next step."""
        if self._noise is None:
            return None
        step = np.minimum(self._length, self._noise.shape[1] - 1)
        return torch.from_numpy(self._noise[np.arange(len(self)), step]).to(self.observation.device)

    def begin(self, row: int, plan: Plan, item: WorkItem) -> None:
        """Give a row to what a plan wants next."""
        self._reserve(item.max_steps)
        self._plans[row], self._goals[row] = plan, item.instructed.goal
        self._length[row], self._limit[row] = 0, item.max_steps
        self._observations[row, 0] = item.start
        self.observation[row] = torch.from_numpy(item.start)
        if self._noise is not None:
            # Its own generator: so its luck is the same in any row, beside any others.
            generator, shape = np.random.default_rng(item.seed), (item.max_steps, *self._noise.shape[2:])
            is_discrete = self._noise.ndim == 2
            luck = generator.random(shape) if is_discrete else generator.standard_normal(shape, dtype=np.float32)
            self._noise[row, : item.max_steps] = luck

    def add(
        self, is_end: NDArray[np.bool_], action: NDArray[Any], observation: NDArray[Any], is_met: GoalTest
    ) -> list[tuple[int, Generated]]:
        """Take one more step of each rollout but those that have ended before it; those that stopped, by row."""
        going = self._limit > 0
        ended = going & is_end & (self._length > 0)
        rows = np.flatnonzero(going & ~ended)
        step = self._length[rows]
        before = self._observations[rows, step]
        self._actions[rows, step] = action[rows]
        self._observations[rows, step + 1] = observation[rows]
        self._length[rows] += 1
        met = np.zeros_like(going)
        if len(rows):
            met[rows] = is_met(list(self._goals[rows]), before, action[rows], observation[rows])
        at_limit = going & (self._length == self._limit)
        reasons = np.select([ended, met, at_limit], ["end", "goal", "limit"], default="")
        return [(row, self._made(row, str(reasons[row]))) for row in np.flatnonzero(ended | met | at_limit).tolist()]

    def clear(self, row: int) -> Plan:
        """Free a row; the plan that it had been given to."""
        plan: Plan = self._plans[row]
        self._plans[row], self._goals[row], self._limit[row] = None, None, 0
        return plan

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop all rows but these."""
        self.observation = self.observation[torch.from_numpy(rows).to(self.observation.device)]
        self._plans, self._goals = self._plans[rows], self._goals[rows]
        self._length, self._limit = self._length[rows], self._limit[rows]
        self._observations, self._actions = self._observations[rows], self._actions[rows]
        self._noise = None if self._noise is None else self._noise[rows]

    def _made(self, row: int, reason: str) -> Generated:
        size = self._length[row]
        return Generated(self._observations[row, : size + 1].copy(), self._actions[row, :size].copy(), reason)

    def _reserve(self, num_steps: int) -> None:
        more = num_steps - self._actions.shape[1]
        if more > 0:
            self._observations, self._actions = _longer(self._observations, more), _longer(self._actions, more)
            self._noise = None if self._noise is None else _longer(self._noise, more)


def _longer(array: NDArray[Any], more: int) -> NDArray[Any]:
    """With so many zeros behind each row."""
    return np.concatenate([array, np.zeros((len(array), more, *array.shape[2:]), dtype=array.dtype)], axis=1)
