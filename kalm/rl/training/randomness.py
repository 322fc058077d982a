"""All that is random in training, as pure functions of a seed: the first weights, and the noise of losses that draw.

What else drew random numbers before, such as building the data or another policy, then makes no difference: a policy
that is trained beside others begins exactly as it would alone, and a resumed run goes on with the same noise.

Shape letters: K updates a training step, S policies side by side, B batch, Z numbers of noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def initialize(module: nn.Module, seed: int, targets: Iterable[tuple[nn.Module, nn.Module]]) -> dict[str, Tensor]:
    """Draw all weights anew by a seed, and copy those of networks into their targets, pairs of target and network.

    Submodules draw in their order, each by its ``reset_parameters``; what has none keeps its weights. The processor's
    generator is left as it was. Returns copies of all parameters by name.
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
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def update_noise(seeds: Sequence[int], updates: range, num_rows: int, size: int) -> Tensor:
    """Standard normal numbers of each policy at each update, shape (K, S * B, Z); ``num_rows`` is B, ``size`` is Z."""
    if not size:
        return torch.zeros(len(updates), len(seeds) * num_rows, 0)
    # A generator reads no more than 32 bits. Multiples of the golden ratio lie far apart on a circle, so the streams of
    # different seeds do not meet.
    streams = [(seed * 0x9E3779B1 + update) % 2**32 for update in updates for seed in seeds]
    draws = [torch.randn(num_rows, size, generator=torch.Generator().manual_seed(stream)) for stream in streams]
    return torch.cat(draws).view(len(updates), -1, size)


def uniform_numbers(
    seed: int, episodes: NDArray[np.uint64], steps: NDArray[np.uint64], size: int
) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1) for a step of each of B episodes: a function of seed, episode, step and place alone.

    A counter is scrambled (splitmix64: Steele et al. 2014) once a number that decides, for no generator has to be made.

    Args:
        seed: Of the run.
        episodes: Seed of each episode, shape (B,).
        steps: Number of its step, shape (B,).
        size: Numbers for each, Z.

    Returns:
        Shape (B, Z).
    """
    with np.errstate(over="ignore"):
        state = _scramble(_scramble(_scramble(np.uint64(seed)) ^ episodes) ^ steps)
        words = _scramble(state[:, None] ^ np.arange(1, size + 1, dtype=np.uint64))
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def _scramble(words: Any) -> Any:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
