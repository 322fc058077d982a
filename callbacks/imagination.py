"""How good imagination is while the language model is grounded: rates a goal split, and a table of examples."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer

from kalm.callbacks.validated_rollouts import ValidatedRollouts
from kalm.core.errors import KalmError
from kalm.core.rollout import Rollout
from kalm.runs.loggers import markdown_table, show_table

_COLUMNS = ("split", "instruction", "steps", "stopped by", "meets its goal", "plausible", "actions")


class Imagination(ValidatedRollouts):
    """Judges the rollouts that a validation step imagines (``num_imagined`` of ``GroundingData`` says how many).

    Logged: ``imagine/<split>/success_rate``, the share that meet their goal by the domain's own rule (KALM, table 1),
    ``imagine/<split>/plausible_rate``, the share without any implausible transition, and
    ``imagine/<split>/mean_length``, their mean number of steps. TensorBoard also gets a table of the first ones of
    every split.
    """

    def __init__(self, num_examples: int = 3) -> None:
        """Choose how much to show.

        Args:
            num_examples: Rows of the example table a split; 0 writes none.
        """
        if num_examples < 0:
            raise KalmError(f"imagination: num_examples is {num_examples}; it must be 0 or more")
        super().__init__()
        self.num_examples = num_examples

    def report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log rates, and show examples in the order of the splits."""
        if not self.imagined:
            return
        splits = trainer.datamodule.domain.goal_splits  # type: ignore[attr-defined]
        rollouts = sorted(self.imagined, key=lambda rollout: splits.index(rollout.goal_split))
        pl_module.log_dict(rates(rollouts), batch_size=1)
        if self.num_examples:
            show_table(trainer, "imagine/examples", examples_table(rollouts, self.num_examples))


def rates(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Share of imagined rollouts of each split that meet their goal, and that are plausible; their mean length."""
    metrics = {}
    for split, of_split in _by_split(rollouts).items():
        num_successes = sum(rollout.is_success for rollout in of_split)
        num_plausible = sum(_is_plausible(rollout) for rollout in of_split)
        metrics[f"imagine/{split}/success_rate"] = num_successes / len(of_split)
        metrics[f"imagine/{split}/plausible_rate"] = num_plausible / len(of_split)
        metrics[f"imagine/{split}/mean_length"] = sum(map(len, of_split)) / len(of_split)
    return metrics


def examples_table(rollouts: Sequence[Rollout], num_examples: int) -> str:
    """A Markdown table of the first rollouts of each split."""
    chosen = [rollout for of_split in _by_split(rollouts).values() for rollout in of_split[:num_examples]]
    return markdown_table(_COLUMNS, map(_cells, chosen))


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


def _by_split(rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    by_split: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        by_split.setdefault(rollout.goal_split, []).append(rollout)
    return by_split
