"""How much each transition counts in the loss: by its source, and by the data's own verdict.

Shape letters: K updates a training step, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from kalm.core.names import SOURCE, WEIGHT, Source
from kalm.core.require import require


class TransitionWeights(nn.Module):
    """Multiplies the weight of a transition's source by the weight that came with it."""

    of_source: Tensor | None

    def __init__(self, source_weights: Mapping[str, float] | None) -> None:
        """Check and keep the weights of sources, by label; 1 where not given."""
        super().__init__()
        given, labels = dict(source_weights or {}), [source.label for source in Source]
        is_met = set(given) <= set(labels) and all(weight >= 0 for weight in given.values())
        require(is_met, "source_weights", source_weights, f"numbers of 0 or more for {' and '.join(labels)}")
        weights = torch.tensor([given.get(label, 1.0) for label in labels])
        self.register_buffer("of_source", weights if set(given.values()) - {1.0} else None, persistent=False)

    def forward(self, batch: TensorDictBase) -> Tensor | None:
        """Weights of a batch, of its shape; None if all transitions count alike, which costs nothing."""
        weight = batch.get(WEIGHT, None)
        if self.of_source is None:
            return weight
        of_source = self.of_source[batch.get(SOURCE).long()]
        return of_source if weight is None else of_source * weight
