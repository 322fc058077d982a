"""Whether imagined first steps are what the simulator would have done (KALM, figure 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from kalm.callbacks.imagination import ValidatedRollouts
from kalm.core.errors import require
from kalm.core.rollout import Rollout
from kalm.envs.base import Domain
from kalm.envs.simulation import replay


class StepMatch(ValidatedRollouts):
    """Carries out the first action of each rollout that a validation imagined, from the same start, in the simulator.

    Logged, but for training goals: ``imagine/<split>/state_match``, the share whose imagined next observation is close
    to the simulator's in every number; and, where all goals of a split are one step away,
    ``imagine/<split>/action_match``, the share whose action meets the goal there. Training goals have held-out real
    rollouts, with which the model compares each step.
    """

    def __init__(self, tolerance: float = 0.2) -> None:
        """Choose what close means: the greatest error of a number, in standard deviations of real observations."""
        require(tolerance > 0, "tolerance", tolerance, "above 0")
        super().__init__()
        self.tolerance = tolerance

    def report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare what was imagined for other than training goals."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        allowed = self.tolerance * data.observation_std.numpy()
        for split in dict.fromkeys(rollout.goal_split for rollout in self.imagined):
            if split != data.domain.training_split:
                rollouts = [rollout for rollout in self.imagined if rollout.goal_split == split]
                metrics = step_match(data.domain, rollouts, allowed)
                pl_module.log_dict({f"imagine/{split}/{name}": value for name, value in metrics.items()}, batch_size=1)


def step_match(domain: Domain, rollouts: Sequence[Rollout], allowed: np.ndarray) -> dict[str, float]:
    """Compare first steps of rollouts that have any with the simulator's; ``allowed`` is the greatest error, (O,)."""
    results = replay(domain, rollouts, num_envs=len(rollouts), max_steps=1)
    after = np.stack([result.observations[1] for result in results])
    error = np.abs(np.stack([rollout.observations[1] for rollout in rollouts]) - after)
    metrics = {"state_match": float((error <= allowed).all(axis=-1).mean())}
    if all(result.episode.instructed.goal.max_steps == 1 for result in results):
        metrics["action_match"] = float(np.mean([result.is_success for result in results]))
    return metrics
