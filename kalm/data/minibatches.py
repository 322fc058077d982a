"""Draws minibatches of a fixed mixture of selections, each a function of its number: a TorchRL buffer ensemble.

TorchRL's own ensemble draws as many rows from each member or leaves the mixture of a batch to chance, and each of its
draws depends on the draws before. Here every minibatch has exactly the configured number of rows of each part (real
and imagined), and that of update u is a function of (seed, u): a counter-based generator (Philox) is set to u rather
than run up to it. So K minibatches drawn at once are the K that would have been drawn one by one, and a resumed run
needs no saved state.

The members of the ensemble hold the numbers of their part's transitions, not the transitions: those stay in the memory
maps of the stores until ``Selection.read`` is asked for them.

Shape letters: K minibatches drawn at once, B rows of a minibatch, T steps of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrl.data import RandomSampler, ReplayBuffer, ReplayBufferEnsemble, SliceSampler, TensorStorage
from torchrl.data.replay_buffers.storages import Storage
from torchrl.data.replay_buffers.writers import ImmutableDatasetWriter

from kalm.core.errors import DataError
from kalm.data.selection import Selection

# Of random words; far from those of a mixture's parts, which are 0, 1, ...
SYMMETRY_STREAM, PARAPHRASE_STREAM = 255, 254
_WORDS_A_BLOCK = 4  # Philox makes four 64-bit words a counter value
_PADDING = ("collector", "mask")  # where TorchRL says which steps of a window are real


@dataclass(frozen=True)
class Updates:
    """The updates to draw for, and all that their luck depends on."""

    seed: int = 0
    first: int = 0
    number: int = 1  # of updates from the first on, K

    def words(self, stream: int, num_words: int) -> NDArray[np.uint64]:
        """Random 64-bit words for each update, shape (K, num_words); streams and updates are independent of others."""
        blocks = -(-num_words // _WORDS_A_BLOCK)
        generator = np.random.Philox(key=[self.seed, stream], counter=self.first * blocks)
        words: NDArray[np.uint64] = generator.random_raw(self.number * blocks * _WORDS_A_BLOCK)
        return words.reshape(self.number, -1)[:, :num_words]

    def numbers(self, stream: int, num_words: int) -> Tensor:
        """The same as int64 that are not negative, shape (K, num_words)."""
        return torch.from_numpy((self.words(stream, num_words) >> np.uint64(1)).astype(np.int64))


@dataclass(frozen=True)
class Part:
    """A selection, and the rows of every minibatch that come from it."""

    selection: Selection
    num_rows: int


class TransitionSampler(RandomSampler):
    """Draws for ``updates``, with replacement, each transition of a storage with equal probability."""

    def __init__(self, stream: int) -> None:
        """Name the stream of random words to draw by."""
        super().__init__()
        self.stream, self.updates = stream, Updates()

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Places in the storage, those of one update after the other; shape (batch_size,)."""
        words = self.updates.words(self.stream, batch_size // self.updates.number) % np.uint64(len(storage))
        return torch.from_numpy(words.astype(np.int64)).view(-1), {}


class WindowSampler(SliceSampler):
    """Draws windows of consecutive steps of a rollout for ``updates``, for policies that read a history.

    Every rollout is equally likely, and so is every place in it where a whole window fits; a rollout shorter than a
    window is taken whole, and the window padded at its end with its last step.
    """

    def __init__(self, stream: int, lengths: Tensor, num_steps: int, generator: torch.Generator) -> None:
        """Say where rollouts end, by their lengths; the generator is the buffer's, set anew for each update."""
        ends = torch.zeros(int(lengths.sum()), dtype=torch.bool)
        ends[lengths.cumsum(0) - 1] = True
        super().__init__(
            slice_len=num_steps,
            ends=ends,
            cache_values=True,
            strict_length=False,
            pad_output=True,
            truncated_key=None,
            init_key=None,
        )
        self.stream, self.updates, self.generator = stream, Updates(), generator

    def sample(self, storage: Storage, batch_size: int) -> tuple[tuple[Tensor], dict[Any, Tensor]]:
        """Places in the storage and whether each step is real, one window after the other; shape (batch_size,)."""
        places, is_step = [], []
        for seed in self.updates.numbers(self.stream, 1)[:, 0]:  # torch's generators take 63 bits
            self.generator.manual_seed(int(seed))
            (place,), info = super().sample(storage, batch_size // self.updates.number)
            places.append(place)
            is_step.append(info.get(_PADDING, torch.ones_like(place, dtype=torch.bool)).view(-1))
        return (torch.cat(places),), {_PADDING: torch.cat(is_step)}


class Minibatches:
    """The rows of the minibatches of any updates; ``buffer`` is TorchRL's ensemble, a member for each part."""

    def __init__(self, parts: Sequence[Part], sequence_length: int = 1) -> None:
        """Make the buffer; no transition is read. Rows of T = ``sequence_length`` above 1 are windows."""
        self._num_rows = [part.num_rows for part in parts]
        self._sequence_length = sequence_length
        generator = torch.Generator()
        members = []
        for stream, part in enumerate(parts):
            sampler: TransitionSampler | WindowSampler = TransitionSampler(stream)
            if sequence_length > 1:
                sampler = WindowSampler(stream, part.selection.lengths, sequence_length, generator)
            storage = TensorStorage(part.selection.rows())
            members.append(ReplayBuffer(storage=storage, sampler=sampler, writer=ImmutableDatasetWriter()))
        self.buffer = ReplayBufferEnsemble(*members, sample_from_all=True, generator=generator)

    def draw(self, updates: Updates) -> tuple[Tensor, Tensor | None]:
        """Which transitions the minibatches of some updates hold.

        Returns:
            Their rows in the line of the parts' selections, int64 of shape (K, B), or (K, B, T) of windows; and of
            windows which steps are real, bool of the same shape.
        """
        window = (self._sequence_length,) if self._sequence_length > 1 else ()
        rows, is_step = [], []
        for member, num_rows in enumerate(self._num_rows):
            if num_rows:
                buffer, shape = self.buffer[member], (updates.number, num_rows, *window)
                buffer.sampler.updates = updates
                drawn, info = buffer.sample(int(np.prod(shape)), return_info=True)
                rows.append(drawn.view(shape))
                is_step += [info[_PADDING].view(shape)] if window else []
        return torch.cat(rows, dim=1), torch.cat(is_step, dim=1) if window else None


def goal_split_parts(
    selection: Selection, num_rows: int, goal_splits: Sequence[str], weights: Mapping[str, float]
) -> list[Part]:
    """One part for every goal split that has rollouts, in their order, with rows by weights, to the nearest one.

    One push makes an easy rollout, fifty an unhappy hard one, and filters leave many of one split and few of another.
    Drawn alike, transitions of the split that has most of them crowd the others out of every minibatch.

    Args:
        selection: The rollouts.
        num_rows: Rows of a minibatch that they get together.
        goal_splits: Splits that there may be.
        weights: How many rows a split gets in proportion to the others; 1 where none is given.

    Raises:
        DataError: If a split would get no row.
    """
    found = set(selection.goal_splits.tolist())
    present = [split for split in goal_splits if split in found]
    shares = np.array([weights.get(split, 1.0) for split in present])
    exact = num_rows * shares / shares.sum()
    rows = np.floor(exact).astype(int)
    rows[np.argsort(rows - exact, kind="stable")[: num_rows - rows.sum()]] += 1  # where the most is missing
    if not rows.all():
        without = ", ".join(split for split, number in zip(present, rows, strict=True) if not number)
        raise DataError(
            f"{num_rows} imagined rows of a minibatch, shared out among {len(present)} goal splits, leave none for "
            f"{without}; raise batch_size, change goal_split_weights or set balance_goal_splits to false"
        )
    return [Part(selection.of_goal_split(split), int(number)) for split, number in zip(present, rows, strict=True)]
