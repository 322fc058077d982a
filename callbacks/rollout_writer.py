"""Stream imagined rollouts to a store, shard by shard, so that a killed run goes on where it stopped."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.data.filters import verdict_counts
from kalm.data.goal_data import GoalData
from kalm.data.rollout import Rollout
from kalm.data.store import RolloutStore, is_finished_store
from kalm.data.work_item import WorkItem
from kalm.data.writer import RolloutStoreWriter
from kalm.envs.base import Domain
from kalm.errors import DataError, KalmError

logger = logging.getLogger(__name__)

STORE = "store"  # folder of the store in the run folder


class RolloutWriter(Callback):
    """Writes what ``predict`` imagines into ``<run folder>/store``: every sound rollout, with provenance and verdicts.

    Rollouts that are broken are rejected and counted by reason. Which of the others to learn from is decided
    where they are read (``filter`` of ``PolicyData``), so that one imagination serves every choice.

    Args:
        max_rejection_rate: The run stops when more than this share of all rollouts so far is rejected, in [0, 1].
    """

    def __init__(self, max_rejection_rate: float = 0.1) -> None:
        """Check the rate before anything is imagined."""
        if not 0 <= max_rejection_rate <= 1:
            raise KalmError(f"max_rejection_rate is {max_rejection_rate}; it is a share, in [0, 1]")
        self.max_rejection_rate = max_rejection_rate
        self._num_seen = 0
        self._rejected: Counter[str] = Counter()
        self._provenance: dict[str, Any] = {}
        self._writer: RolloutStoreWriter | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the data module ask what is stored already, once the weights are loaded."""
        if stage != "predict":
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, GoalData):
            raise KalmError(
                f"RolloutWriter got {type(data).__name__}; imagine with kalm.data.goal_data.GoalData as data module"
            )
        folder = Path(trainer.default_root_dir) / STORE

        def begin() -> set[str]:
            self._provenance = pl_module.provenance()
            if is_finished_store(folder) and RolloutStore(folder).manifest["made_by"] == self._made_by(data):
                self._writer = None
                return {shard.name for shard in data.all_shards}
            self._writer = self._begin(folder, data)
            return self._writer.finished_shards

        data.finished_shards = begin

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Store one shard."""
        data: GoalData = trainer.datamodule  # type: ignore[attr-defined]
        kept = []
        for rollout, item in zip(outputs, batch, strict=True):
            reason = rejection(rollout, item, data.domain)
            self._num_seen += 1
            if reason:
                self._rejected[reason] += 1
            else:
                facts = {"id": item.identity(str(self._provenance)), **self._provenance}
                kept.append(replace(rollout, provenance={**rollout.provenance, **facts}))
        self._check_rate()
        assert self._writer is not None
        self._writer.append(data.shards[batch_idx].name, kept)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seal the store and say what is in it."""
        if self._writer is None:
            logger.info("all rollouts had been imagined before")
            return
        data: GoalData = trainer.datamodule  # type: ignore[attr-defined]
        num_left = len({shard.name for shard in data.all_shards} - self._writer.finished_shards)
        if num_left:  # limit_predict_batches: a store that lacks rollouts must not pass for the whole
            logger.warning("%d shards are left to imagine; the same command goes on with them", num_left)
            return
        store = self._writer.finish()
        for split, counts in verdict_counts(store).items():
            logger.info("%s: %s", split, ", ".join(f"{count} {name}" for name, count in counts.items()))
        if self._rejected:
            logger.warning("rejected %s", _reasons(self._rejected))

    def _made_by(self, data: GoalData) -> dict[str, Any]:
        return {"verb": "predict", **data.description, **self._provenance}

    def _begin(self, folder: Path, data: GoalData) -> RolloutStoreWriter:
        domain = data.domain
        return RolloutStoreWriter(
            folder,
            domain.name,
            domain.observation_space,
            domain.action_space,
            domain.plausibility_flags,
            self._made_by(data),
        )

    def _check_rate(self) -> None:
        num_rejected = self._rejected.total()
        if num_rejected > self.max_rejection_rate * self._num_seen:
            raise DataError(
                f"{num_rejected} of {self._num_seen} imagined rollouts were rejected ({_reasons(self._rejected)}), "
                f"more than max_rejection_rate {self.max_rejection_rate} allows; ground the model longer or raise it"
            )


def rejection(rollout: Rollout, item: WorkItem, domain: Domain) -> str:
    """Why no store should hold an imagined rollout: ``empty``, ``too long``, ``not finite``, ``off the world``.

    Returns:
        The reason; an empty string if there is none.
    """
    if not len(rollout):
        return "empty"
    if len(rollout) > item.max_steps:
        return "too long"
    if not (np.isfinite(rollout.observations).all() and np.isfinite(rollout.actions).all()):
        return "not finite"
    space = domain.observation_space
    if ((rollout.observations < space.low) | (rollout.observations > space.high)).any():
        return "off the world"
    return ""


def _reasons(rejected: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in rejected.most_common())
