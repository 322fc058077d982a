"""The control beside imagination: what a judge lets through of actions that nobody chose."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning import LightningModule
from numpy.typing import NDArray

from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.core.specs import Spec
from kalm.data.language_batches import WorkItem, WorkShard


class RandomRollouts(LightningModule):
    """Stands in for the grounded model in ``predict``: uniformly random actions, and a world in which nothing moves.

    Goals, sentences, starts and judges are those of real imagination, and there is no knowledge at all in what is
    "imagined". So whatever a policy gains by rollouts of this kind that pass a judge, it owes to the judge. A goal that
    is judged by the action alone is met by chance, which makes the judge's own choice of actions the label that a
    policy clones; a goal that is judged by states is never met.
    """

    def __init__(self, spec: Spec) -> None:
        """Take what actions are like, linked to the data module's."""
        super().__init__()
        self.spec = spec

    def predict_step(self, batch: WorkShard, batch_index: int) -> list[Rollout]:
        """One rollout for each work item of a shard, decided by the item alone."""
        return [self._rollout(item) for item in batch.items]

    def provenance(self) -> dict[str, Any]:
        """Plain JSON types that say what imagines."""
        return {"model": "random actions in a world that stands still"}

    def _rollout(self, item: WorkItem) -> Rollout:
        domain = self.trainer.datamodule.domain  # type: ignore[attr-defined]
        actions = self._actions(item)
        observations = np.repeat(item.start[None], item.max_steps + 1, axis=0)
        return domain.label_rollout(item.instructed, observations, actions, Source.IMAGINARY, {"seed": item.seed})

    def _actions(self, item: WorkItem) -> NDArray[Any]:
        """Shape (T,), int64, or (T, A), float32 in [-1, 1)."""
        rng, size = np.random.default_rng(item.seed), self.spec.action_size
        if self.spec.is_discrete:
            return rng.integers(size, size=item.max_steps)
        return rng.uniform(-1, 1, (item.max_steps, size)).astype(np.float32)
