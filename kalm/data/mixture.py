"""Draws minibatches of a fixed mixture from several rollout stores: a TorchRL ``ReplayBufferEnsemble``.

TorchRL's own ensemble either draws as many rows from each member or leaves the mixture of a batch to chance, and each
of its draws depends on the draws before. Here every minibatch has exactly the configured number of rows of each part
(real and imagined), and minibatch u is a function of (seed, u): a counter-based generator (Philox) is set to u rather
than run up to it. So K minibatches drawn at once are the K that would have been drawn one by one, and a resumed run
needs no saved state. Rows are drawn with replacement, each transition of a part with equal probability.

With a ``sequence_length`` T above 1 a row is a window of T steps of one rollout, see ``windows.py``.

Shape letters: K minibatches drawn at once, B rows of a minibatch, T steps of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBufferEnsemble, TensorStorage
from torchrl.data.replay_buffers.samplers import Sampler, SamplerEnsemble
from torchrl.data.replay_buffers.storages import Storage, StorageEnsemble
from torchrl.data.replay_buffers.writers import ImmutableDatasetWriter, WriterEnsemble

from kalm.data.windows import RolloutWindows
from kalm.store.reader import RolloutStore

_WORDS_A_BLOCK = 4  # Philox makes four 64-bit words a counter value


@dataclass(frozen=True)
class MixturePart:
    """Stores that are drawn from as if they were one.

    Attributes:
        stores: The stores.
        rollouts: For each store, rows of the rollouts to use, int64, ascending; not empty all together.
        num_rows: Rows of every minibatch that come from this part.
    """

    stores: Sequence[RolloutStore]
    rollouts: Sequence[Tensor]
    num_rows: int


def mixture_buffer(
    parts: Sequence[MixturePart], seed: int, rank: int = 0, sequence_length: int = 1
) -> ReplayBufferEnsemble:
    """Join stores, without copying them, into one buffer; member i is the i-th store in the order of the parts.

    Set ``buffer.sampler.next_update`` and call ``buffer.sample(K * B * T)``: the rows of minibatches ``next_update`` to
    ``next_update + K - 1`` come out one minibatch after the other. ``buffer.sampler.seed`` may be set as well.

    Args:
        parts: The mixture.
        seed: Decides, with the index of a minibatch, which rows it holds.
        rank: Process of a distributed run; each draws rows of its own.
        sequence_length: Steps of a row, T. Above 1, ``padding_mask`` stands beside ``index`` in what is drawn.
    """
    return ReplayBufferEnsemble(
        storages=_MixtureStorage(parts, sequence_length),
        samplers=MixtureSampler(parts, seed, rank, sequence_length),
        writers=WriterEnsemble(*(ImmutableDatasetWriter() for part in parts for _ in part.stores)),
        collate_fn=_only_sample,
    )


class _StatelessSampler(Sampler):
    """What TorchRL asks of a sampler beside sampling, for one that has nothing to save."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert not state_dict

    def dumps(self, path: Any) -> None:
        """Write nothing."""

    def loads(self, path: Any) -> None:
        """Read nothing."""

    def _empty(self) -> None:
        """Forget nothing."""


class RolloutSampler(_StatelessSampler):
    """Draws uniformly from some runs of a storage's rows, in memory proportional to their number."""

    def __init__(self, start: Tensor, length: Tensor) -> None:
        """Restrict a storage to some runs of rows.

        Args:
            start: First row of each run, int64 of shape (runs,).
            length: Its rows, same shape.
        """
        self.start, self.length = start, length
        self._stop = length.cumsum(0)
        self._shift = start - (self._stop - length)
        self.num_transitions = int(self._stop[-1]) if len(length) else 0

    def locate(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Find positions in [0, num_transitions), counted over the runs only.

        Returns:
            For each position the row of its transition in the storage, and the run it lies in.
        """
        if len(self._stop) == 1:  # the first rollouts of a store, as they lie: no need to search
            return position + self._shift, torch.zeros_like(position)
        run = torch.searchsorted(self._stop, position, right=True)
        return position + self._shift[run], run

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Draw with the buffer's generator (used when a member of the ensemble is sampled by itself)."""
        return self.locate(torch.randint(self.num_transitions, (batch_size,), generator=self._rng))[0], {}


class MixtureSampler(SamplerEnsemble):
    """Chooses the rows of minibatches ``next_update``, ``next_update + 1``, ... by (``seed``, index) alone."""

    def __init__(self, parts: Sequence[MixturePart], seed: int, rank: int, sequence_length: int) -> None:
        """Describe the mixture.

        Args:
            parts: The mixture.
            seed: Seed of the run.
            rank: Process of a distributed run.
            sequence_length: Steps of a row.
        """
        members = [rollout_sampler(*pair) for part in parts for pair in zip(part.stores, part.rollouts, strict=True)]
        super().__init__(*members)
        self.next_update = 0
        self.seed, self._rank = seed, rank
        self._num_rows = [part.num_rows for part in parts]
        self._parts: list[tuple[RolloutSampler, Tensor]] = []
        first = 0
        for part in parts:
            samplers = members[first : first + len(part.stores)]
            joined = RolloutSampler(torch.cat([s.start for s in samplers]), torch.cat([s.length for s in samplers]))
            sizes = torch.tensor([len(s.start) for s in samplers])
            self._parts.append((joined, torch.arange(first, first + len(samplers)).repeat_interleave(sizes)))
            first += len(samplers)
        self._sequence_length = sequence_length
        self._windows = [
            RolloutWindows(_lengths(part.stores, part.rollouts), sequence_length) if sequence_length > 1 else None
            for part in parts
        ]

    def sample(self, storage: StorageEnsemble, batch_size: int) -> tuple[TensorDictBase, TensorDictBase]:
        """Choose ``batch_size`` steps, a whole number K of minibatches, and move on by K.

        Returns:
            ``index``, ``buffer_ids`` (the member) and, of windows, ``padding_mask`` (True = real step), each of shape
            (batch_size,); and a place for TorchRL's notes.
        """
        num_updates, rest = divmod(batch_size, sum(self._num_rows) * self._sequence_length)
        if rest:
            raise ValueError(
                f"{batch_size} steps are no whole number of minibatches of {sum(self._num_rows)} rows "
                f"of {self._sequence_length} steps"
            )
        index, member, padding_mask = [], [], []
        for stream, ((sampler, member_of), num_rows) in enumerate(zip(self._parts, self._num_rows, strict=True)):
            if num_rows:
                position, is_step = self._draw(stream, num_updates, num_rows)
                rows, run = sampler.locate(position)
                index.append(rows)
                member.append(member_of[run])
                padding_mask.append(is_step)
        self.next_update += num_updates
        chosen = {"index": torch.cat(index, dim=1).view(-1), "buffer_ids": torch.cat(member, dim=1).view(-1)}
        if self._sequence_length > 1:
            chosen["padding_mask"] = torch.cat(padding_mask, dim=1).view(-1)
        return TensorDict(chosen, batch_size=[batch_size]), TensorDict(batch_size=[batch_size])

    def _draw(self, stream: int, num_updates: int, num_rows: int) -> tuple[Tensor, Tensor]:
        """Positions in a part of the steps of rows, and whether each is real; both (num_updates, num_rows * T)."""
        windows, (sampler, _) = self._windows[stream], self._parts[stream]
        if windows is None:
            words = self.random_words(stream, num_updates, num_rows) % np.uint64(sampler.num_transitions)
            position = torch.from_numpy(words.astype(np.int64))
            return position, torch.ones((), dtype=torch.bool).expand_as(position)
        seeds = self.random_words(stream, num_updates, 1)[:, 0] >> np.uint64(1)  # torch's generators take 63 bits
        drawn = [windows.draw(num_rows, int(seed)) for seed in seeds]
        return torch.stack([position for position, _ in drawn]), torch.stack([is_step for _, is_step in drawn])

    def random_words(self, stream: int, num_updates: int, num_words: int) -> NDArray[np.uint64]:
        """Random 64-bit words for the next updates, shape (num_updates, num_words).

        Those of an update depend on (seed, rank, stream, update) only. The parts of the mixture are streams 0, 1, ...
        """
        blocks = -(-num_words // _WORDS_A_BLOCK)
        key = [self.seed, (self._rank << 8) + stream]
        generator = np.random.Philox(key=key, counter=self.next_update * blocks)
        words: NDArray[np.uint64] = generator.random_raw(num_updates * blocks * _WORDS_A_BLOCK)
        return words.reshape(num_updates, -1)[:, :num_words]


def rollout_sampler(store: RolloutStore, rollouts: Tensor) -> RolloutSampler:
    """A sampler of some rollouts of a store, those that follow each other joined to runs.

    Args:
        store: Where the rollouts lie.
        rollouts: Rows of ``store.rollouts``, ascending.
    """
    start, length = store.rollouts["start"][rollouts], _lengths([store], [rollouts])
    stop = start + length
    begins, ends = torch.ones_like(start, dtype=torch.bool), torch.ones_like(start, dtype=torch.bool)
    begins[1:] = ends[:-1] = start[1:] != stop[:-1]
    return RolloutSampler(start[begins], stop[ends] - start[begins])


def _lengths(stores: Sequence[RolloutStore], rollouts: Sequence[Tensor]) -> Tensor:
    """Transitions of each rollout of some stores lined up, int64."""
    return torch.cat([store.rollouts["length"][rows] for store, rows in zip(stores, rollouts, strict=True)]).long()


class _MixtureStorage(StorageEnsemble):
    """Reads each member once a draw, and lays the rows out as they were asked for."""

    def __init__(self, parts: Sequence[MixturePart], sequence_length: int) -> None:
        storages = [TensorStorage(store.transitions) for part in parts for store in part.stores]
        super().__init__(*storages)
        self._num_rows = [part.num_rows * sequence_length for part in parts]
        # Indexing a TensorDict costs several times what indexing its tensors does; a draw is mostly that.
        self._columns = [dict(storage.get(slice(None)).items(True, True)) for storage in storages]

    def get(self, item: TensorDictBase) -> list[tuple[int, TensorDict]]:
        shape = (-1, sum(self._num_rows))
        members = item["buffer_ids"].view(shape).split(self._num_rows, dim=1)
        indices = item["index"].view(shape).split(self._num_rows, dim=1)
        read = [self._read(member, index) for member, index in zip(members, indices, strict=True) if index.numel()]
        columns = {key: torch.cat([part[key] for part in read], dim=1).flatten(0, 1) for key in read[0]}
        return [(0, TensorDict(columns, batch_size=item.batch_size))]

    def _read(self, member: Tensor, index: Tensor) -> dict[Any, Tensor]:
        """Rows ``index`` of the members of one part, both of shape (K, rows); columns of shape (K, rows, ...)."""
        flat_member, flat_index = member.reshape(-1), index.reshape(-1)
        places = [(flat_member == number).nonzero().squeeze(-1) for number in range(len(self._columns))]
        asked = [(columns, place) for columns, place in zip(self._columns, places, strict=True) if len(place)]
        if len(asked) == 1:
            result = {key: column.index_select(0, flat_index) for key, column in asked[0][0].items()}
        else:
            rows = [(columns, flat_index[place]) for columns, place in asked]
            order = torch.cat([place for _, place in asked]).argsort()
            joined = {key: torch.cat([columns[key][chosen] for columns, chosen in rows]) for key in self._columns[0]}
            result = {key: column.index_select(0, order) for key, column in joined.items()}
        return {key: column.unflatten(0, index.shape) for key, column in result.items()}


def _only_sample(samples: Sequence[TensorDict]) -> TensorDict:
    (sample,) = samples
    return sample
