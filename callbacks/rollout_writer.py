"""Stream imagined rollouts to a store, shard by shard, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import gymnasium as gym
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kalm.core.durable import file_sha256, write_durably
from kalm.core.errors import DataError, KalmError, require
from kalm.core.provenance import changes
from kalm.core.validation import raise_problems, rejection
from kalm.data.choice import verdict_counts
from kalm.data.goal_data import GoalData
from kalm.judging.dynamics_veto import OffLearnedDynamics, Unconfirmed
from kalm.judging.judge import Judge
from kalm.rl.dynamics.dynamics_check import load_dynamics_check
from kalm.runs.folder import REJECTED_FILE, STORE, find_checkpoint
from kalm.store.reader import RolloutStore, is_finished_store
from kalm.store.writer import RolloutStoreWriter

logger = logging.getLogger(__name__)


class _Imagining(Protocol):
    """A module whose ``predict_step`` makes a rollout for each work item of a shard."""

    def provenance(self) -> dict[str, Any]:
        """Plain JSON types that say what imagines."""


class RolloutWriter(Callback):
    """Writes what ``predict`` imagines into ``<run folder>/store``: every sound rollout, with provenance and verdicts.

    Rollouts that are broken are rejected, and counted by reason in ``rejected.json``. Which of the others to learn
    from is decided where they are read (``imagined.filter`` of ``PolicyData``), so that one imagination serves every
    choice.

    Several devices (``--trainer.devices``) write into one store, whole shards each.
    """

    def __init__(
        self,
        max_rejection_rate: float = 0.1,
        dynamics: str | None = None,
        least_confirming: int = 1,
        judges: Sequence[Judge] = (),
    ) -> None:
        """Check the rate before anything is imagined.

        Args:
            max_rejection_rate: The run stops when more than this share of all rollouts so far is rejected, in [0, 1].
            dynamics: Checkpoint of a ``kalm.rl.dynamics.dynamics_check.DynamicsCheck``, trained on real rollouts
                alone, whose verdicts join the domain's plausibility flags; null goes without.
            least_confirming: Of its members, how many must see the goal of a successful rollout come true as well.
            judges: Who else judges each rollout that is kept; each writes a label of its own beside the store.
        """
        require(0 <= max_rejection_rate <= 1, "max_rejection_rate", max_rejection_rate, "a share, in [0, 1]")
        self.max_rejection_rate = max_rejection_rate
        self._dynamics, self._least_confirming = dynamics, least_confirming
        self._given_judges, self._judges = list(judges), list[Judge]()
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
        assert self._writer is not None
        spec, space = data.domain.spec, cast(gym.spaces.Box, data.domain.observation_space)
        goals, kept, rejected = [], [], Counter[str]()
        for rollout, item in zip(outputs, batch.items, strict=True):
            if reason := rejection(rollout, spec, item.max_steps, space.low, space.high):
                rejected[reason] += 1
                continue
            facts = {"id": item.identity(str(self._provenance)), **self._provenance}
            kept.append(replace(rollout, provenance={**rollout.provenance, **facts}))
            goals.append(item.instructed.goal)
        self._check_rate({**self._writer.rejected, batch.name: rejected}, data)
        verdicts = {judge.name: judge.judge(goals, kept) for judge in self._judges}
        self._writer.append(batch.name, kept, verdicts, rejected)
        if trainer.received_sigterm:  # Lightning looks for it between the batches of fit only
            raise SIGTERMException

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Seal the store once every device has done its part, and say what is in it."""
        # Not at the end of predict: Lightning leaves that out on a device that had nothing to do.
        if stage == "predict" and self._writer is not None:
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                self._seal(self._writer, trainer)
            trainer.strategy.barrier()
            self._writer = None

    def _begin(self, trainer: Trainer, pl_module: LightningModule, data: GoalData) -> set[str]:
        """Open the store, new or unfinished; the names of the shards that need not be imagined."""
        folder = Path(trainer.default_root_dir) / STORE
        self._provenance = cast(_Imagining, pl_module).provenance()
        made_by = {"verb": "predict", **data.description, **self._provenance}
        self._judges = list(self._given_judges)
        if self._judges:
            made_by["judges"] = {judge.name: judge.provenance for judge in self._judges}
        if self._dynamics is not None:
            path = find_checkpoint(self._dynamics, Path(self._dynamics), "dynamics")
            model, which = load_dynamics_check(path, data.domain), {"dynamics_sha256": file_sha256(path)}
            unconfirmed = Unconfirmed(model, data.domain, self._least_confirming, which)
            self._judges += [OffLearnedDynamics(model, which), unconfirmed]
            made_by |= {**which, "least_confirming": self._least_confirming}
        if is_finished_store(folder):
            # Rollouts of another model, or of other goals, must not pass for those that are asked for.
            raise_problems(
                f"{folder} holds what was imagined with other settings",
                changes(RolloutStore(folder).manifest["made_by"], json.loads(json.dumps(made_by))),
                "Write elsewhere with another --experiment, or delete the folder to imagine anew.",
            )
            logger.info("all rollouts had been imagined before: %s", folder)
            return {shard.name for shard in data.all_shards}
        if not trainer.is_global_zero:
            trainer.strategy.barrier()  # the store is begun by one device and joined by the others
        domain = data.domain
        self._writer = RolloutStoreWriter(
            folder, domain.name, domain.spec, domain.plausibility_flags, made_by, judges=self._judges
        )
        if trainer.is_global_zero:
            trainer.strategy.barrier()
        # One answer for all, after which any of them may write: else each would deal out what is left by itself.
        finished: set[str] = trainer.strategy.broadcast(self._writer.finished_shards)
        trainer.strategy.barrier()
        return finished

    def _check_rate(self, counts: Mapping[str, Counter[str]], data: GoalData) -> None:
        """Stop a run whose model imagines little that is sound."""
        num_seen = sum(len(shard.items) for shard in data.all_shards if shard.name in counts)
        num_rejected = sum(reasons.total() for reasons in counts.values())
        if num_rejected > self.max_rejection_rate * num_seen:
            raise DataError(
                f"{num_rejected} of {num_seen} imagined rollouts were rejected ({_reasons(counts)}), "
                f"more than max_rejection_rate {self.max_rejection_rate} allows; ground the model longer or raise it"
            )

    def _seal(self, writer: RolloutStoreWriter, trainer: Trainer) -> None:
        data: GoalData = trainer.datamodule  # type: ignore[attr-defined]
        num_left = len({shard.name for shard in data.all_shards} - writer.finished_shards)
        if num_left:  # limit_predict_batches: a store that lacks rollouts must not pass for the whole
            logger.warning("%d shards are left to imagine; the same command goes on with them", num_left)
            return
        counts = writer.rejected
        write_durably(
            Path(trainer.default_root_dir) / REJECTED_FILE, json.dumps(counts, sort_keys=True, indent=1).encode()
        )
        store = writer.finish()
        for split, verdicts in verdict_counts(store).items():
            logger.info("%s: %s", split, ", ".join(f"{count} {name}" for name, count in verdicts.items()))
        if any(counts.values()):
            logger.warning("rejected %s", _reasons(counts))


def _reasons(counts: Mapping[str, Counter[str]]) -> str:
    total = sum(counts.values(), Counter[str]())
    return ", ".join(f"{count} {reason}" for reason, count in total.most_common())
