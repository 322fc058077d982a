"""Draws minibatches of a fixed mixture from several rollout stores: a TorchRL ``ReplayBufferEnsemble``.

TorchRL's own ensemble either draws as many rows from each member or leaves the mixture of a batch to chance, and each
of its draws depends on the draws before. Here every minibatch has exactly the configured number of rows of each part
(real and imagined), and minibatch u is a function of (seed, u): a counter-based generator (Philox) is set to u rather
than run up to it. So K minibatches drawn at once are the K that would have been drawn one by one, and a resumed run
needs no saved state. Rows are drawn with replacement, each transition of a part with equal probability.

Shape letters: K minibatches drawn at once, B rows of a minibatch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

from kalm.data.store import RolloutStore

_WORDS_A_BLOCK = 4  # Philox makes four 64-bit words a counter value


@dataclass(frozen=True)
class MixturePart:
    """Stores that are drawn from as if they were one.

    Attributes:
        stores: The stores.
        rollouts: For each store, rows of the rollouts to use, int64; not empty all together.
        num_rows: Rows of every minibatch that come from this part.
    """

    stores: Sequence[RolloutStore]
    rollouts: Sequence[Tensor]
    num_rows: int


def mixture_buffer(parts: Sequence[MixturePart], seed: int, rank: int = 0) -> ReplayBufferEnsemble:
    """Join stores, without copying them, into one buffer; member i is the i-th store in the order of the parts.

    Set ``buffer.sampler.next_update`` and call ``buffer.sample(K * B)``: the rows of minibatches ``next_update`` to
    ``next_update + K - 1`` come out one minibatch after the other.

    Args:
        parts: The mixture.
        seed: Decides, with the index of a minibatch, which rows it holds.
        rank: Process of a distributed run; each draws rows of its own.
    """
    stores = [store for part in parts for store in part.stores]
    return ReplayBufferEnsemble(
        storages=_ScatterStorage(*(TensorStorage(store.transitions) for store in stores)),
        samplers=MixtureSampler(parts, seed, rank),
        writers=WriterEnsemble(*(ImmutableDatasetWriter() for _ in stores)),
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
    """Draws uniformly from the transitions of some rollouts, in memory proportional to their number."""

    def __init__(self, start: Tensor, length: Tensor) -> None:
        """Restrict a storage to some rollouts.

        Args:
            start: Row of each rollout's first transition, int64 of shape (rollouts,).
            length: Its transitions, same shape.
        """
        self.start, self.length = start, length
        self._stop = length.cumsum(0)
        self._shift = start - (self._stop - length)
        self.num_transitions = int(self._stop[-1]) if len(length) else 0

    def locate(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Find positions in [0, num_transitions), counted over the chosen rollouts only.

        Returns:
            For each position the row of its transition in the storage, and its rollout among the chosen ones.
        """
        rollout = torch.searchsorted(self._stop, position, right=True)
        return position + self._shift[rollout], rollout

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Draw with the buffer's generator (used when a member of the ensemble is sampled by itself)."""
        return self.locate(torch.randint(self.num_transitions, (batch_size,), generator=self._rng))[0], {}


class MixtureSampler(SamplerEnsemble):
    """Chooses the rows of minibatches ``next_update``, ``next_update + 1``, ... by (seed, index) alone."""

    def __init__(self, parts: Sequence[MixturePart], seed: int, rank: int) -> None:
        """Describe the mixture.

        Args:
            parts: The mixture.
            seed: Seed of the run.
            rank: Process of a distributed run.
        """
        members = [rollout_sampler(store, rows) for part in parts for store, rows in _members(part)]
        super().__init__(*members)
        self.next_update = 0
        self._key = (seed, rank)
        self._num_rows = [part.num_rows for part in parts]
        self._parts: list[tuple[RolloutSampler, Tensor]] = []
        first = 0
        for part in parts:
            samplers = members[first : first + len(part.stores)]
            joined = RolloutSampler(torch.cat([s.start for s in samplers]), torch.cat([s.length for s in samplers]))
            sizes = torch.tensor([len(s.start) for s in samplers])
            self._parts.append((joined, torch.arange(first, first + len(samplers)).repeat_interleave(sizes)))
            first += len(samplers)

    def sample(self, storage: StorageEnsemble, batch_size: int) -> tuple[TensorDictBase, TensorDictBase]:
        """Choose ``batch_size`` rows, a whole number K of minibatches, and move on by K.

        Returns:
            ``index`` and ``buffer_ids`` (the member), each of shape (batch_size,); and a place for TorchRL's notes.
        """
        num_updates, rest = divmod(batch_size, sum(self._num_rows))
        if rest:
            raise ValueError(f"{batch_size} rows are no whole number of minibatches of {sum(self._num_rows)}")
        index, member = [], []
        for stream, ((sampler, member_of), num_rows) in enumerate(zip(self._parts, self._num_rows, strict=True)):
            if num_rows:
                words = self._random_words(stream, num_updates, num_rows) % np.uint64(sampler.num_transitions)
                rows, rollout = sampler.locate(torch.from_numpy(words.astype(np.int64)))
                index.append(rows)
                member.append(member_of[rollout])
        self.next_update += num_updates
        chosen = {"index": torch.cat(index, dim=1).view(-1), "buffer_ids": torch.cat(member, dim=1).view(-1)}
        return TensorDict(chosen, batch_size=[batch_size]), TensorDict(batch_size=[batch_size])

    def _random_words(self, stream: int, num_updates: int, num_words: int) -> NDArray[np.uint64]:
        """Random 64-bit words, shape (num_updates, num_words); row k depends on (seed, rank, stream, update) only."""
        blocks = -(-num_words // _WORDS_A_BLOCK)
        seed, rank = self._key
        generator = np.random.Philox(key=[seed, (rank << 8) + stream], counter=self.next_update * blocks)
        words: NDArray[np.uint64] = generator.random_raw(num_updates * blocks * _WORDS_A_BLOCK)
        return words.reshape(num_updates, -1)[:, :num_words]


def _members(part: MixturePart) -> Iterable[tuple[RolloutStore, Tensor]]:
    return zip(part.stores, part.rollouts, strict=True)


def rollout_sampler(store: RolloutStore, rollouts: Tensor) -> RolloutSampler:
    """A sampler of some rollouts of a store; ``rollouts`` are rows of ``store.rollouts``."""
    return RolloutSampler(store.rollouts["start"][rollouts], store.rollouts["length"][rollouts].long())


class _ScatterStorage(StorageEnsemble):
    """Reads each member once, whatever the order of the rows, and puts the rows in the order they were asked in."""

    def __init__(self, *storages: TensorStorage) -> None:
        super().__init__(*storages)
        # Indexing a TensorDict costs several times what indexing its tensors does; a draw is mostly that.
        self._columns = [dict(storage.get(slice(None)).items(True, True)) for storage in storages]

    def get(self, item: TensorDictBase) -> list[tuple[int, TensorDict]]:
        member, index = item["buffer_ids"], item["index"]
        asked = [(rows, columns) for n, columns in enumerate(self._columns) if len(rows := _where(member == n))]
        if len(asked) == 1:
            only = {key: column.index_select(0, index) for key, column in asked[0][1].items()}
            return [(0, TensorDict(only, batch_size=index.shape))]
        parts = [(index[rows], columns) for rows, columns in asked]
        place = torch.cat([rows for rows, _ in asked])
        order = torch.empty_like(place)
        order[place] = torch.arange(len(place))
        joined = {
            key: torch.cat([columns[key].index_select(0, rows) for rows, columns in parts]).index_select(0, order)
            for key in self._columns[0]
        }
        return [(0, TensorDict(joined, batch_size=index.shape))]


def _where(condition: Tensor) -> Tensor:
    return condition.nonzero().squeeze(-1)


def _only_sample(samples: Sequence[TensorDict]) -> TensorDict:
    (sample,) = samples
    return sample
