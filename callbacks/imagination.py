"""How good imagination is while the language model is grounded: rates a goal split, and a table of examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.core.errors import require
from kalm.core.rollout import Rollout
from kalm.runs.loggers import markdown_table, show_table

_COLUMNS = ("split", "instruction", "steps", "stopped by", "meets its goal", "plausible", "actions")


class ValidatedRollouts(Callback, ABC):
    """Collects the rollouts of a validation: held-out ones in ``real``, what the model imagines in ``imagined``."""

    def __init__(self) -> None:
        """Begin with none."""
        self.real: list[Rollout] = []
        self.imagined: list[Rollout] = []

    @abstractmethod
    def report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the rollouts of the whole validation show; called only if there are any."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self.real, self.imagined = [], []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take what a step has shown."""
        self.real += outputs.get("real", [])
        self.imagined += outputs.get("imaginary", [])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        if not trainer.sanity_checking and (self.real or self.imagined):
            self.report(trainer, pl_module)


class Imagination(ValidatedRollouts):
    """Judges the rollouts that a validation step imagines (``num_imagined`` of ``GroundingData`` says how many).

    Logged: ``imagine/<split>/success_rate``, the share that meet their goal by the domain's own rule (KALM, table 1),
    ``imagine/<split>/plausible_rate``, the share without any implausible transition, and
    ``imagine/<split>/mean_length``, their mean number of steps. TensorBoard also gets a table of the first ones of
    every split.
    """

    def __init__(self, num_examples: int = 3) -> None:
        """Show so many rollouts of each split in the table; 0 writes none."""
        require(num_examples >= 0, "num_examples", num_examples, "0 or more")
        super().__init__()
        self.num_examples = num_examples

    def report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log rates, and show examples in the order of the splits."""
        if not self.imagined:
            return
        metrics, examples = {}, []
        for split in trainer.datamodule.domain.goal_splits:  # type: ignore[attr-defined]
            rollouts = [rollout for rollout in self.imagined if rollout.goal_split == split]
            if rollouts:
                examples += rollouts[: self.num_examples]
                num_successes = sum(rollout.is_success for rollout in rollouts)
                metrics[f"imagine/{split}/success_rate"] = num_successes / len(rollouts)
                metrics[f"imagine/{split}/plausible_rate"] = sum(map(_is_plausible, rollouts)) / len(rollouts)
                metrics[f"imagine/{split}/mean_length"] = sum(map(len, rollouts)) / len(rollouts)
        pl_module.log_dict(metrics, batch_size=1)
        if examples:
            show_table(trainer, "imagine/examples", markdown_table(_COLUMNS, map(_cells, examples)))


def _cells(rollout: Rollout) -> tuple[str, ...]:
    return (
        rollout.goal_split,
        rollout.instruction,
        str(len(rollout)),
        str(rollout.provenance.get("stopped_by", "")),
        "yes" if rollout.is_success else "no",
        "yes" if _is_plausible(rollout) else "no",
        str(rollout.actions.round(2).tolist()),
    )


def _is_plausible(rollout: Rollout) -> bool:
    return not any(rollout.violations.values())
