"""What was imagined, task by task: how much meets its goal and is kept, and whether the simulator agrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.callbacks.rollout_writer import RolloutWriter
from kalm.core.durable import write_durably
from kalm.core.errors import KalmError, require
from kalm.data.choice import RolloutFilter, rollout_tasks, rollout_verdicts
from kalm.data.selection import Selection
from kalm.envs.base import Domain
from kalm.envs.simulation import drift, replay
from kalm.runs.folder import STORE, TASKS_FILE
from kalm.store.reader import RolloutStore, is_finished_store


class ImaginedTasks(Callback):
    """Writes ``<run folder>/tasks.json`` once ``predict`` has finished its store; ``report`` makes a table of it.

    A model that cheats in its own imagination, by states that do its will, is seen here: its rollouts meet their goals,
    and the same actions in the simulator do not. Replays decide nothing; imagination stays offline.
    """

    def __init__(self, num_replayed: int = 0) -> None:
        """Replay of each task the first so many rollouts that meet their goal; 0 replays none."""
        require(num_replayed >= 0, "num_replayed", num_replayed, "0 or more")
        self.num_replayed = num_replayed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make sure that the store is sealed when this callback looks at it."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, RolloutWriter) for callback in callbacks[callbacks.index(self) :]):
            raise KalmError("ImaginedTasks stands before RolloutWriter in trainer.callbacks; it must stand behind it")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Count; also when a store that was finished before is found."""
        folder = Path(trainer.default_root_dir)
        if stage == "predict" and trainer.is_global_zero and is_finished_store(folder / STORE):
            domain: Domain = trainer.datamodule.domain  # type: ignore[attr-defined]
            counts = task_counts(domain, RolloutStore(folder / STORE), self.num_replayed)
            write_durably(folder / TASKS_FILE, (json.dumps(counts, indent=1) + "\n").encode())


def task_counts(domain: Domain, store: RolloutStore, num_replayed: int) -> list[dict[str, Any]]:
    """Verdicts of each task of each goal split; of each task at most ``num_replayed`` rollouts are replayed.

    Returns:
        ``goal_split`` and ``task``; ``num_rollouts``; ``plausible``, ``success`` and ``both``, those that pass that
        filter; ``num_replayed`` of the successful ones, ``replayed_success`` of them whose goal came true in the
        simulator, and their mean ``drift``, null if there is none.
    """
    verdicts = rollout_verdicts(store)
    splits, tasks = store.goal_splits.tolist(), rollout_tasks(domain, Selection.whole([store]))
    counts = []
    rank = {split: place for place, split in enumerate(domain.goal_splits)}
    for split, task in sorted(set(zip(splits, tasks, strict=True)), key=lambda entry: (rank[entry[0]], entry[1])):
        of_task = torch.tensor([(s, t) == (split, task) for s, t in zip(splits, tasks, strict=True)])
        passed = {f.name: int((verdicts[f] & of_task).sum()) for f in RolloutFilter if f is not RolloutFilter.none}
        claimed = (verdicts[RolloutFilter.success] & of_task).nonzero().squeeze(-1)[:num_replayed]
        rollouts = [store.rollout(row) for row in claimed.tolist()]
        results = replay(domain, rollouts)
        replayed = {
            "num_replayed": len(results),
            "replayed_success": sum(result.is_success for result in results),
            "drift": float(np.mean(list(map(drift, rollouts, results)))) if results else None,
        }
        num_rollouts = {"num_rollouts": int(of_task.sum())}
        counts.append({"goal_split": split, "task": task, **num_rollouts, **passed, **replayed})
    return counts
