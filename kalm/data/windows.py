"""Windows of consecutive steps of a rollout, for policies that read a history rather than one transition.

TorchRL's ``SliceSampler`` cuts them: every rollout is equally likely, and so is every place in it where a whole window
fits; a rollout shorter than a window is taken whole, and the window padded at its end. The sampler draws from a
generator, which is set anew for each minibatch, so that a minibatch is a function of its seed alone.

Shape letters: T steps of a window, R rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchrl.data import ReplayBuffer, SliceSampler, TensorStorage
from torchrl.data.replay_buffers.writers import ImmutableDatasetWriter

from kalm.core import names
from kalm.data.returns import store_returns_to_go
from kalm.store.reader import RolloutStore

_PADDING = ("collector", "mask")  # where TorchRL says which steps of a window are real


class RolloutWindows:
    """Draws windows from rollouts that are lined up, by the positions of their transitions."""

    def __init__(self, length: Tensor, sequence_length: int) -> None:
        """Line rollouts up.

        Args:
            length: Transitions of each rollout, int64 of shape (R,).
            sequence_length: Steps of a window, T.
        """
        stop = length.cumsum(0)
        ends = torch.zeros(int(stop[-1]) if len(stop) else 0, dtype=torch.bool)
        ends[stop - 1] = True
        self._sequence_length = sequence_length
        self._generator = torch.Generator()
        sampler = SliceSampler(
            slice_len=sequence_length,
            ends=ends,
            cache_values=True,
            strict_length=False,
            pad_output=True,
            truncated_key=None,
            init_key=None,
        )
        self._positions = ReplayBuffer(
            storage=TensorStorage(torch.arange(len(ends))),
            sampler=sampler,
            writer=ImmutableDatasetWriter(),
            generator=self._generator,
        )

    def draw(self, num_windows: int, seed: int) -> tuple[Tensor, Tensor]:
        """Draw windows, with replacement.

        Args:
            num_windows: How many.
            seed: Equal seeds give equal windows.

        Returns:
            The position of every step, and whether it is real (padding repeats the last real one); both one window
            after the other, shape (num_windows * T,).
        """
        self._generator.manual_seed(seed)
        position, info = self._positions.sample(num_windows * self._sequence_length, return_info=True)
        return position, info.get(_PADDING, torch.ones_like(position, dtype=torch.bool))


@dataclass(frozen=True)
class RolloutStatistics:
    """What a policy of windows has to know of the rollouts it learns from.

    Attributes:
        return_to_go_mean: Mean over the steps of the real rollouts.
        return_to_go_std: Standard deviation of the same.
        returns: Return of each real rollout, float32 of shape (R,).
        max_length: Steps of the longest rollout of either source.
    """

    return_to_go_mean: float
    return_to_go_std: float
    returns: Tensor
    max_length: int


def rollout_statistics(stores: Sequence[RolloutStore], rollouts: Sequence[Tensor]) -> RolloutStatistics:
    """Look at the rollouts in use.

    Args:
        stores: The real store, then those of imagined rollouts.
        rollouts: For each store, rows of the rollouts in use.
    """
    real, rows = stores[0], rollouts[0]
    to_go = store_returns_to_go(real)
    of_steps = to_go[torch.isin(real.transitions[names.ROLLOUT_ID], rows)]
    in_use = [(store, used) for store, used in zip(stores, rollouts, strict=True) if len(used)]
    return RolloutStatistics(
        return_to_go_mean=of_steps.mean().item(),
        return_to_go_std=of_steps.std(unbiased=False).item(),
        returns=to_go[real.rollouts["start"][rows]],
        max_length=max(int(store.rollouts["length"][used].max()) for store, used in in_use),
    )
