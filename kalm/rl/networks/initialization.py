"""Random weights to begin with, as a pure function of a seed.

What else drew random numbers before, such as building the data or another policy, then makes no difference: a policy
that is trained beside others begins exactly as it would alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


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
