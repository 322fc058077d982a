"""Stream imagined rollouts to a store, shard by shard, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.changes import changes
from kalm.data.durable import write_durably
from kalm.data.filters import verdict_counts
from kalm.data.goal_data import GoalData
from kalm.data.rollout import Rollout
from kalm.data.store import RolloutStore, is_finished_store
from kalm.data.validation import raise_problems
from kalm.data.work_item import WorkItem
from kalm.data.writer import RolloutStoreWriter
from kalm.envs.base import Domain
from kalm.errors import DataError, KalmError
from kalm.llm.grounded_llm import GroundedLLM

logger = logging.getLogger(__name__)

STORE = "store"  # folder of the store in the run folder
REJECTED_FILE = "rejected.json"  # beside it: shard -> reason -> rollouts


class RolloutWriter(Callback):
    """Writes what ``predict`` imagines into ``<run folder>/store``: every sound rollout, with provenance and verdicts.

    Rollouts that are broken are rejected, and counted by reason in ``rejected.json``. Which of the others to learn
    from is decided where they are read (``filter`` of ``PolicyData``), so that one imagination serves every choice.
    """

    def __init__(self, max_rejection_rate: float = 0.1) -> None:
        """Check the rate before anything is imagined.

        Args:
            max_rejection_rate: The run stops when more than this share of all rollouts so far is rejected, in [0, 1].
        """
        if not 0 <= max_rejection_rate <= 1:
            raise KalmError(f"max_rejection_rate is {max_rejection_rate}; it is a share, in [0, 1]")
        self.max_rejection_rate = max_rejection_rate
        self._num_seen = 0
        self._rejected: dict[str, Counter[str]] = {}
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
        if trainer.world_size > 1:
            raise KalmError(f"RolloutWriter got {trainer.world_size} devices; it writes one store: --trainer.devices 1")
        data.finished_shards = lambda: self._begin(trainer, pl_module, data)

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
        shard, kept, rejected = data.shards[batch_idx].name, [], Counter[str]()
        for rollout, item in zip(outputs, batch, strict=True):
            reason = rejection(rollout, item, data.domain)
            if reason:
                rejected[reason] += 1
            else:
                facts = {"id": item.identity(str(self._provenance)), **self._provenance}
                kept.append(replace(rollout, provenance={**rollout.provenance, **facts}))
        self._count(shard, len(batch), rejected, _folder(trainer) / REJECTED_FILE)
        assert self._writer is not None
        self._writer.append(shard, kept)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seal the store and say what is in it."""
        self._seal(trainer.datamodule)  # type: ignore[attr-defined]

    def _begin(self, trainer: Trainer, pl_module: LightningModule, data: GoalData) -> set[str]:
        """Open the store, new or unfinished; the names of the shards that need not be imagined."""
        folder = _folder(trainer) / STORE
        self._provenance = cast(GroundedLLM, pl_module).provenance()
        made_by = {"verb": "predict", **data.description, **self._provenance}
        everything = {shard.name for shard in data.all_shards}
        if is_finished_store(folder):
            _check_same(folder, made_by)
            logger.info("all rollouts had been imagined before: %s", folder)
            return everything
        domain = data.domain
        spaces = domain.observation_space, domain.action_space
        self._writer = RolloutStoreWriter(folder, domain.name, *spaces, domain.plausibility_flags, made_by)
        finished = self._writer.finished_shards
        self._recall(data, finished, _folder(trainer) / REJECTED_FILE)
        if finished == everything:  # killed before sealing; Lightning calls no hook when there is nothing to predict
            self._seal(data)
        return finished

    def _recall(self, data: GoalData, finished: set[str], path: Path) -> None:
        """Go on counting where an earlier run stopped; what it rejected in a shard it did not store is forgotten."""
        self._num_seen = sum(len(shard.items) for shard in data.all_shards if shard.name in finished)
        counted = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._rejected = {shard: Counter(reasons) for shard, reasons in counted.items() if shard in finished}

    def _count(self, shard: str, num_seen: int, rejected: Counter[str], path: Path) -> None:
        """Keep count, durably; stop a run whose model imagines little that is sound."""
        self._num_seen += num_seen
        self._rejected[shard] = rejected
        num_rejected = sum(reasons.total() for reasons in self._rejected.values())
        if num_rejected > self.max_rejection_rate * self._num_seen:
            raise DataError(
                f"{num_rejected} of {self._num_seen} imagined rollouts were rejected ({self._reasons()}), "
                f"more than max_rejection_rate {self.max_rejection_rate} allows; ground the model longer or raise it"
            )
        write_durably(path, json.dumps(self._rejected, sort_keys=True, indent=1).encode())

    def _seal(self, data: GoalData) -> None:
        if self._writer is None:
            return
        num_left = len({shard.name for shard in data.all_shards} - self._writer.finished_shards)
        if num_left:  # limit_predict_batches: a store that lacks rollouts must not pass for the whole
            logger.warning("%d shards are left to imagine; the same command goes on with them", num_left)
            return
        store, self._writer = self._writer.finish(), None
        for split, counts in verdict_counts(store).items():
            logger.info("%s: %s", split, ", ".join(f"{count} {name}" for name, count in counts.items()))
        if any(self._rejected.values()):
            logger.warning("rejected %s", self._reasons())

    def _reasons(self) -> str:
        total = sum(self._rejected.values(), Counter[str]())
        return ", ".join(f"{count} {reason}" for reason, count in total.most_common())


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


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)


def _check_same(folder: Path, made_by: Mapping[str, Any]) -> None:
    """Refuse to pass off rollouts of another model, or of other goals, as those that were asked for."""
    found = RolloutStore(folder).manifest["made_by"]
    expected = json.loads(json.dumps(made_by))
    raise_problems(
        f"{folder} holds what was imagined with other settings",
        changes(found, expected),
        "Write elsewhere with another --experiment, or delete the folder to imagine anew.",
    )
