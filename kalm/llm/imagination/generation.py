"""Takes the steps of many rollouts together, each at its own place, two tokens a step: the state, then the action.

A rollout stops on its own: when its goal is met, when the model says that it ends, or at its limit. Its row of the
batch then goes to the next rollout that waits, so that the batch stays full (continuous batching: Yu et al. 2022,
Orca); when none waits any more, rows are dropped. What a rollout becomes is decided by its work item alone, up to
rounding: neither by the rollouts beside it nor by how many there are.

Shape letters: R rows, O numbers in an observation, A actions or numbers in an action, H hidden size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kalm.data.language_batches import WorkItem
from kalm.language.prompts import generation_prompt
from kalm.llm.backbones.backbone import Backbone
from kalm.llm.backbones.key_value_cache import RowMemory
from kalm.llm.grounding.rollout_codec import RolloutCodec
from kalm.llm.imagination.rows import GoalTest, Plan, Rows

# Rows are given to the next rollouts, or dropped, once this part of them is free: either has a price, and so have rows
# that are free.
_FREE_FRACTION = 0.125


class Reader:
    """Runs a language model over one rollout a row, behind a prompt of its own.

    It remembers keys and values: each token is run once, and so is each prompt that several rollouts share.
    """

    def __init__(self, backbone: Backbone, num_rows: int, column_step: int = 1) -> None:
        """Plan for so many rows; nothing is read yet, and no memory taken; for the step see ``KeyValueCache``."""
        self._backbone, self._column_step = backbone, column_step
        self._cache = backbone.make_cache(num_rows, 0, column_step)
        self._memories: dict[str, RowMemory] = {}  # the prompt that was used last stands last

    def begin(self, num_rows: int) -> None:
        """Forget everything; let there be so many rows, at most as many as were planned for.

        Prompts too: how a prompt's numbers are rounded depends on those that it is read with, and a run that was killed
        and goes on must imagine the same to the last bit.
        """
        self._cache.restart(num_rows)
        self._memories.clear()

    def admit(self, rows: Sequence[int], prompts: Sequence[str], num_tokens: int) -> None:
        """Begin these rows anew with these prompts; at most so many tokens will come behind any of them."""
        self._read([prompt for prompt in dict.fromkeys(prompts) if prompt not in self._memories])
        memories = [self._memories.pop(prompt) for prompt in dict.fromkeys(prompts)]
        self._memories |= dict(zip(dict.fromkeys(prompts), memories, strict=True))
        longest = max(memory.num_tokens for memory in memories)
        self._backbone.require_room(longest + num_tokens)
        self._cache.reserve(-(-(longest + num_tokens) // self._column_step) * self._column_step)
        for row, prompt in zip(rows, prompts, strict=True):
            self._cache.recall(row, self._memories[prompt])
        self._forget_prompts(len(memories))

    def make_room(self, num_tokens: int) -> None:
        """Get ready to extend each row by so many tokens."""
        self._cache.make_room(num_tokens)

    def extend(self, vectors: Tensor) -> Tensor:
        """Hidden vectors of the next token of each row, shape (R, H), from its vector, shape (R, H)."""
        return self._backbone.read_on(vectors[:, None], self._cache)[:, 0]

    def release(self, rows: NDArray[np.int64]) -> None:
        """These rows are done with; they may be admitted anew, or dropped."""
        self._cache.forget(rows)

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop all rows but these: row ``rows[i]`` becomes row i; a row below ``len(rows)`` stays where it is."""
        self._cache.keep(rows)

    def _read(self, prompts: Sequence[str]) -> None:
        """Run the model over prompts, and remember what it makes of each."""
        if not prompts:
            return
        vectors, prompt_mask = self._backbone.embed_prompts(prompts)
        cache = self._backbone.make_cache(*prompt_mask.shape)
        self._backbone.read(vectors, cache)
        cache.trim(prompt_mask.sum(dim=1))
        self._memories |= {prompt: cache.memory(row) for row, prompt in enumerate(prompts)}

    def _forget_prompts(self, num_needed: int) -> None:
        """Let prompts take up no more memory than rollouts do; forget first those that were not used for longest."""
        budget = self._cache.num_rows * self._cache.num_columns
        num_tokens = sum(memory.num_tokens for memory in self._memories.values())
        for prompt in list(self._memories)[:-num_needed]:
            if num_tokens <= budget:
                return
            num_tokens -= self._memories.pop(prompt).num_tokens


Step = Callable[[Reader, RolloutCodec, float, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]


def take_step(
    reader: Reader, codec: RolloutCodec, temperature: float, observation: Tensor, noise: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of every row, which has room for two more tokens; tensors only, so that it can be compiled.

    ``observation`` is where each rollout is, shape (R, O); ``noise`` is each rollout's luck in this step, shape (R,) or
    (R, A), None at temperature 0.

    Returns:
        Probability that the rollout has ended before this step, shape (R,); actions, int64 of shape (R,) or float of
        shape (R, A); next observations, shape (R, O).
    """
    hidden = reader.extend(codec.encode_observation(observation))
    end = torch.sigmoid(codec.predict_end(hidden))
    action = choose_action(codec, hidden, noise, temperature)
    hidden = reader.extend(codec.encode_action(action))
    return end, action, codec.apply_change(observation, codec.predict_change(hidden))


@dataclass(frozen=True)
class Generation:
    """A model set up to take steps, and what stops a rollout before its limit."""

    reader: Reader
    codec: RolloutCodec
    is_met: GoalTest  # says after each step which rollouts have met their goals
    temperature: float = 0.0  # both of these as in ``ImaginationSettings``
    end_threshold: float = 1.0
    step: Step = take_step  # compiled perhaps
    drops_rows: bool = True  # those that nothing waits for; if not, shapes stay what they are

    @torch.inference_mode()
    def carry_out(self, plans: Sequence[Plan], num_rows: int) -> None:
        """Take steps until no plan wants anything more; what a plan wants after a piece comes before what waits.

        Plans of one goal and one instruction are best next to each other: they are judged together, and their prompt is
        read once. So many rows take their steps together; ``reader`` has begun with as many.
        """
        waiting = deque((plan, item) for plan in plans if (item := plan.next_item) is not None)
        rows = Rows(self.codec, num_rows, draws=bool(self.temperature))
        while True:
            if len(rows.free) >= _FREE_FRACTION * len(rows):
                self._admit(rows, waiting)
                free = rows.free
                if len(free) == len(rows):
                    return
                if self.drops_rows and len(free) >= _FREE_FRACTION * len(rows):
                    kept = _compact(len(rows), free)
                    self.reader.keep(kept)
                    rows.keep(kept)
                else:
                    self.reader.release(free)
            self.reader.make_room(2)
            made = self.step(self.reader, self.codec, self.temperature, rows.observation, rows.noise)
            end, action, observation = made
            rows.observation.copy_(observation)
            is_end = end.cpu().numpy() >= self.end_threshold
            stopped = rows.add(is_end, action.cpu().numpy(), observation.cpu().numpy(), self.is_met)
            for row, piece in stopped:
                plan = rows.clear(row)
                plan.add(piece)
                if plan.next_item is not None:
                    waiting.appendleft((plan, plan.next_item))
            self.reader.release(np.array([row for row, _ in stopped], dtype=np.int64))

    def _admit(self, rows: Rows, waiting: deque[tuple[Plan, WorkItem]]) -> None:
        """Give free rows to what waits."""
        places = rows.free[: len(waiting)].tolist()
        admitted = [waiting.popleft() for _ in places]
        if admitted:
            for row, (plan, item) in zip(places, admitted, strict=True):
                rows.begin(row, plan, item)
            prompts = [generation_prompt(item.instructed.instruction) for _, item in admitted]
            self.reader.admit(places, prompts, 2 * max(item.max_steps for _, item in admitted))


def _compact(num_rows: int, free: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which row each place gets when free ones are dropped: the last ones fill the gaps, the others stay."""
    num_kept = num_rows - len(free)
    kept = np.arange(num_kept)
    kept[free[free < num_kept]] = np.setdiff1d(np.arange(num_kept, num_rows), free)
    return kept


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
