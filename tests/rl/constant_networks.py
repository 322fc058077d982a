"""Gives networks outputs that no input changes, so that a loss can be worked by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kalm.rl.networks import MLP, EnsembleMLP


def make_constant(network: MLP | EnsembleMLP, outputs: Sequence[float] | Sequence[Sequence[float]]) -> None:
    """Make every output of a network, or of each member of an ensemble, the same for all inputs."""
    last_weight, last_bias = (
        (network.output.weight, network.output.bias)
        if isinstance(network, MLP)
        else (network.weights[-1], network.biases[-1])
    )
    nn.init.zeros_(last_weight)
    with torch.no_grad():
        last_bias.copy_(torch.tensor(outputs).view_as(last_bias))
