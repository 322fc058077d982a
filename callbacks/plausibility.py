"""How often real and imagined transitions break the world's rules, flag by flag (KALM, table 4)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Plausibility(Callback):
    """Logs ``plausibility/<source>/<split>/<flag>``: the share of transitions that each of the domain's flags marks.

    Real rollouts are the held-out ones of a validation, imagined ones what the same validation imagined. What the real
    ones show is the rate at which a flag is raised for nothing.
    """

    def __init__(self) -> None:
        """Take no options."""
        self._num_marked: Counter[str] = Counter()
        self._num_transitions: Counter[str] = Counter()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self._num_marked.clear()
        self._num_transitions.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count transitions; the domain has marked them already."""
        for source, rollouts in outputs.items():
            for rollout in rollouts:
                for flag, num_marked in rollout.violations.items():
                    name = f"{source}/{rollout.goal_split}/{flag}"
                    self._num_marked[name] += num_marked
                    self._num_transitions[name] += len(rollout)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        if trainer.sanity_checking:
            return
        pl_module.log_dict(
            {f"plausibility/{name}": self._num_marked[name] / total for name, total in self._num_transitions.items()},
            batch_size=1,
        )
