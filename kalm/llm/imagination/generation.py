"""Takes the steps of many rollouts together, two tokens a step: the state, then the action.

A rollout stops on its own: when its goal is met, when the model says that it ends, or at its limit. Its row of the
batch then goes to the next rollout that waits, so that the batch stays full (continuous batching: Yu et al. 2022,
Orca); when none waits any more, rows are dropped. What a rollout becomes is decided by its work item alone, up to
rounding: neither by the rollouts beside it nor by how many there are.

Shape letters: R rows, B rows with a rollout in them, O numbers in an observation, A actions or numbers in an action,
H hidden size, T steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.data.work_item import WorkItem
from kalm.language.prompts import generation_prompt
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.llm.imagination.reader import Reader

# Rows are given to the next rollouts, or dropped, once this part of them is free: either has a price, and so have rows
# that are free.
_FREE_FRACTION = 0.125


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


# Whether goals have been met, bool of shape (B,), by the last steps of the rollouts of B work items: observations
# before, actions, observations after.
GoalReached = Callable[[Sequence[WorkItem], NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[np.bool_]]
# Takes what was made for the work item of a number; may ask for another one, which goes by that number as well.
Finish = Callable[[int, Generated], WorkItem | None]
# Probability of the end, shape (R,); actions; next observations, shape (R, O).
Step = Callable[[Reader, RolloutCodec, float, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]


def take_step(
    reader: Reader, codec: RolloutCodec, temperature: float, observation: Tensor, noise: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of every row; tensors only, so that it can be compiled.

    Args:
        reader: Has room for two more tokens in each row.
        codec: Inputs and outputs for observations and actions.
        temperature: Of ``Sampling``.
        observation: Where each rollout is, shape (R, O).
        noise: Each rollout's luck in this step, shape (R,) or (R, A); None at temperature 0.

    Returns:
        Probability that the rollout has ended before this step, shape (R,); actions, int64 of shape (R,) or float of
        shape (R, A); next observations, shape (R, O).
    """
    hidden = reader.extend(codec.encode_observation(observation))
    end = torch.sigmoid(codec.predict_end(hidden))
    action = choose_action(codec, hidden, noise, temperature)
    hidden = reader.extend(codec.encode_action(action))
    return end, action, codec.apply_change(observation, codec.predict_change(hidden))


@torch.inference_mode()
def generate(
    reader: Reader,
    codec: RolloutCodec,
    sampling: Sampling,
    items: Sequence[WorkItem],
    reached: GoalReached,
    finish: Finish,
    num_rows: int,
    step: Step = take_step,
    drops_rows: bool = True,
) -> None:
    """Take steps until every rollout has stopped.

    Args:
        reader: Has begun with ``num_rows`` rows.
        codec: Inputs and outputs for observations and actions.
        sampling: How freely actions are drawn.
        items: What to make. Those of one goal and one instruction are best next to each other: they are judged
            together, and their prompt is read once.
        reached: The domain's rule.
        finish: Called with a work item's place in ``items`` and what was made. What it asks for comes next.
        num_rows: Rollouts that take their steps together.
        step: ``take_step``, compiled perhaps.
        drops_rows: Whether rows that nothing waits for are dropped. If not, shapes stay what they are.
    """
    waiting = deque(enumerate(items))
    rows = _Rows(codec, num_rows, draws=bool(sampling.temperature))
    while True:
        if len(rows.free) >= _FREE_FRACTION * len(rows):
            _admit(reader, rows, waiting)
            free = rows.free
            if len(free) == len(rows):
                return
            if drops_rows and len(free) >= _FREE_FRACTION * len(rows):
                kept = _compact(len(rows), free)
                reader.keep(kept)
                rows.keep(kept)
            else:
                reader.release(free)
        reader.make_room(2)
        end, action, observation = step(reader, codec, sampling.temperature, rows.observation, rows.noise)
        rows.observation.copy_(observation)
        stopped = rows.add(
            end.cpu().numpy() >= sampling.end_threshold, action.cpu().numpy(), observation.cpu().numpy(), reached
        )
        for row, made in stopped:
            index = rows.clear(row)
            following = finish(index, made)
            if following is not None:
                waiting.appendleft((index, following))
        reader.release(np.array([row for row, _ in stopped], dtype=np.int64))


def _admit(reader: Reader, rows: _Rows, waiting: deque[tuple[int, WorkItem]]) -> None:
    """Give free rows to what waits."""
    places = rows.free[: len(waiting)].tolist()
    admitted = [waiting.popleft() for _ in places]
    if admitted:
        for row, (index, item) in zip(places, admitted, strict=True):
            rows.begin(row, index, item)
        prompts = [generation_prompt(item.instructed.instruction) for _, item in admitted]
        reader.admit(places, prompts, 2 * max(item.max_steps for _, item in admitted))


def _compact(num_rows: int, free: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which row each place gets when free ones are dropped: the last ones fill the gaps, the others stay."""
    num_kept = num_rows - len(free)
    kept = np.arange(num_kept)
    kept[free[free < num_kept]] = np.setdiff1d(np.arange(num_kept, num_rows), free)
    return kept


class _Rows:
    """Which rollout each row belongs to, and the steps that it has taken.

    Attributes:
        observation: Where each rollout is, shape (R, O), on the model's device.
    """

    def __init__(self, codec: RolloutCodec, num_rows: int, draws: bool) -> None:
        self._items: list[WorkItem | None] = [None] * num_rows
        self._index = np.zeros(num_rows, dtype=np.int64)
        self._length, self._limit = np.zeros((2, num_rows), dtype=np.int64)
        observation_size = len(codec.observation_mean)
        self._observations = np.zeros((num_rows, 1, observation_size), dtype=np.float32)
        action_shape = () if codec.is_discrete else (codec.action_size,)
        self._actions = np.zeros((num_rows, 0, *action_shape), dtype=np.int64 if codec.is_discrete else np.float32)
        noise_type = np.float64 if codec.is_discrete else np.float32
        self._noise = np.zeros((num_rows, 0, *action_shape), dtype=noise_type) if draws else None
        self.observation = torch.zeros(num_rows, observation_size, device=codec.observation_mean.device)

    def __len__(self) -> int:
        return len(self._items)

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

    def begin(self, row: int, index: int, item: WorkItem) -> None:
        """Give a row to a rollout."""
        self._reserve(item.max_steps)
        self._items[row], self._index[row] = item, index
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
        self, is_end: NDArray[np.bool_], action: NDArray[Any], observation: NDArray[Any], reached: GoalReached
    ) -> list[tuple[int, Generated]]:
        """Take one more step of each rollout; those that stopped, by row."""
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
            items = [item for item in (self._items[row] for row in rows) if item is not None]
            met[rows] = reached(items, before, action[rows], observation[rows])
        at_limit = going & (self._length == self._limit)
        reasons = np.select([ended, met, at_limit], ["end", "goal", "limit"], default="")
        return [(row, self._made(row, str(reasons[row]))) for row in np.flatnonzero(ended | met | at_limit).tolist()]

    def clear(self, row: int) -> int:
        """Free a row; the place among the work items of the rollout that it had."""
        self._items[row], self._limit[row] = None, 0
        return int(self._index[row])

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop all rows but these."""
        self.observation = self.observation[torch.from_numpy(rows).to(self.observation.device)]
        self._items = [self._items[row] for row in rows]
        self._index, self._length, self._limit = self._index[rows], self._length[rows], self._limit[rows]
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


def choose_action(codec: RolloutCodec, hidden: Tensor, noise: Tensor | None, temperature: float) -> Tensor:
    """The next action of each row, int64 of shape (R,) or float of shape (R, A)."""
    prediction = codec.predict_action(hidden)
    if not codec.is_discrete:
        wanted = prediction if noise is None else prediction + temperature * noise
        return wanted.clamp(-1, 1)
    if noise is None:
        return prediction.argmax(dim=-1)
    cumulative = torch.softmax(prediction.double() / temperature, dim=-1).cumsum(dim=-1)
    drawn = torch.searchsorted(cumulative, noise[:, None]).squeeze(-1)
    return drawn.clamp(max=prediction.shape[-1] - 1)
