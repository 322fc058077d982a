"""All that is random in training, as pure functions of a seed: the first weights, and the noise of losses that draw.

What else drew random numbers before, such as building the data or another policy, then makes no difference: a policy
that is trained beside others begins exactly as it would alone, and a resumed run goes on with the same noise.

Shape letters: K updates a training step, S policies side by side, B batch, Z numbers of noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
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


def update_noise(seeds: Sequence[int], updates: Sequence[int], num_rows: int, size: int) -> Tensor:
    """Standard normal numbers of each policy at each update, shape (K, S * B, Z); ``num_rows`` is B, ``size`` is Z."""
    if not size:
        return torch.zeros(len(updates), len(seeds) * num_rows, 0)
    # A generator reads no more than 32 bits. Multiples of the golden ratio lie far apart on a circle, so the streams of
    # different seeds do not meet.
    streams = [(seed * 0x9E3779B1 + update) % 2**32 for update in updates for seed in seeds]
    draws = [torch.randn(num_rows, size, generator=torch.Generator().manual_seed(stream)) for stream in streams]
    return torch.cat(draws).view(len(updates), -1, size)
