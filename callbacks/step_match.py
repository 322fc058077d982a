"""Whether imagined first steps are what the simulator would have done (KALM, figure 12)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.core.errors import KalmError
from kalm.core.rollout import Rollout
from kalm.envs.base import Domain
from kalm.envs.simulation import replay


class StepMatch(Callback):
    """Carries out the first action of each rollout that a validation imagined, from the same start, in the simulator.

    Logged, but for training goals: ``imagine/<split>/state_match``, the share whose imagined next observation is close
    to the simulator's in every number; and, where all goals of a split are one step away,
    ``imagine/<split>/action_match``, the share whose action meets the goal there. Training goals have held-out real
    rollouts, with which the model compares each step.
    """

    def __init__(self, tolerance: float = 0.2) -> None:
        """Choose what close means.

        Args:
            tolerance: Greatest error of a number, in standard deviations of real observations.
        """
        if tolerance <= 0:
            raise KalmError(f"step_match: tolerance is {tolerance}; it must be above 0")
        self.tolerance = tolerance
        self._rollouts: dict[str, list[Rollout]] = defaultdict(list)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self._rollouts.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect what was imagined."""
        for rollout in outputs.get("imaginary", []):
            if rollout.goal_split != trainer.datamodule.domain.training_split:  # type: ignore[attr-defined]
                self._rollouts[rollout.goal_split].append(rollout)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        if trainer.sanity_checking:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        allowed = self.tolerance * data.observation_std.numpy()
        for split, rollouts in self._rollouts.items():
            metrics = step_match(data.domain, rollouts, allowed)
            pl_module.log_dict({f"imagine/{split}/{name}": value for name, value in metrics.items()}, batch_size=1)


def step_match(domain: Domain, rollouts: Sequence[Rollout], allowed: np.ndarray) -> dict[str, float]:
    """Compare first steps with the simulator's.

    Args:
        domain: Whose simulator to ask.
        rollouts: Imagined rollouts, none of them empty.
        allowed: Greatest error of each number of an observation, shape (O,).
    """
    results = replay(domain, rollouts, num_envs=len(rollouts), max_steps=1)
    after = np.stack([result.observations[1] for result in results])
    error = np.abs(np.stack([rollout.observations[1] for rollout in rollouts]) - after)
    metrics = {"state_match": float((error <= allowed).all(axis=-1).mean())}
    if all(result.episode.instructed.goal.max_steps == 1 for result in results):
        metrics["action_match"] = float(np.mean([result.is_success for result in results]))
    return metrics
