"""All that is random in training, as pure functions of a seed: the first weights, and the noise of losses that draw.

What else drew random numbers before, such as building the data or another policy, then makes no difference: a policy
that is trained beside others begins exactly as it would alone, and a resumed run goes on with the same noise.

Shape letters: K updates a training step, S policies side by side, B batch, Z numbers of noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def initialize(module: nn.Module, seed: int, targets: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Draw all weights anew, with the generator of the processor, which is left as it was.

    Args:
        module: Its submodules draw in their order, each by its ``reset_parameters``; what has none keeps its weights.
        seed: Equal seeds give equal weights.
        targets: Pairs of a target network and the network that it is a copy of.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for part in module.modules():
            # torch's attention layers hide theirs behind an underscore.
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if reset is not None:
                reset()
    for target, network in targets:
        target.load_state_dict(network.state_dict())


def update_noise(seeds: Sequence[int], updates: range, num_rows: int, size: int) -> Tensor:
    """Standard normal numbers of each policy at each update, shape (K, S * B, Z).

    Args:
        seeds: Seed of each of the S policies.
        updates: Numbers of the K updates.
        num_rows: Rows of each policy's minibatch, B.
        size: Numbers a row, Z.
    """
    if not size:
        return torch.zeros(len(updates), len(seeds) * num_rows, 0)
    draws = [
        torch.randn(num_rows, size, generator=torch.Generator().manual_seed(_stream(seed, update)))
        for update in updates
        for seed in seeds
    ]
    return torch.cat(draws).view(len(updates), -1, size)


def _stream(seed: int, update: int) -> int:
    """Seed of a generator, 32 bits: torch's reads no more of it.

    Multiples of the golden ratio lie far apart on a circle, so the streams of different seeds do not meet.
    """
    return (seed * 0x9E3779B1 + update) % 2**32
