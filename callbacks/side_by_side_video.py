"""Videos of recorded and imagined rollouts beside what the policy does from the same starts."""

from __future__ import annotations

from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.callbacks.rollout_gif import GifStyle, evaluated_panel, imagined_panel, show_gif
from kalm.core.goal import InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.data.policy_data import PolicyData
from kalm.envs.base import Domain
from kalm.envs.simulation import Episode
from kalm.runs.evaluated import EvaluatedPolicy


class SideBySideVideo(Callback):
    """Shows, when training ends, one rollout of every goal split that was learned from, and the policy beside it.

    Instruction and start are the same on both sides; the simulator comes as near to an imagined start as it can. On
    the left is a real rollout where the split has some, as training goals do, or an imagined one that passed the
    filter. TensorBoard has it as ``side_by_side/<split>``, the run folder as ``videos/side-by-side-<split>.gif``.
    """

    def __init__(self, max_steps: int = 100, size: int = 224, seconds_per_step: float = 0.1) -> None:
        """Choose how to draw.

        Args:
            max_steps: Steps drawn of a rollout, its first ones.
            size: Pixels along each side of one picture of the two.
            seconds_per_step: How long a frame stays.
        """
        self.style = GifStyle(max_steps, size, seconds_per_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the policy and draw."""
        if not trainer.is_global_zero:
            return
        policy = cast(EvaluatedPolicy, pl_module)
        data: PolicyData = trainer.datamodule  # type: ignore[attr-defined]
        found = [data.first_rollout(split) for split in data.domain.goal_splits]
        recorded = [rollout for rollout in found if rollout is not None]
        results = policy.run_episodes(data.domain, [_same_start(data.domain, rollout) for rollout in recorded])
        for rollout, result in zip(recorded, results, strict=True):
            whose = "real" if rollout.source is Source.REAL else "imagined"
            panels = [imagined_panel(data.domain, rollout, whose), evaluated_panel(result, "policy")]
            name, tag = f"side-by-side-{rollout.goal_split}", f"side_by_side/{rollout.goal_split}"
            show_gif(trainer, name, tag, panels, rollout.instruction, self.style, policy.num_updates)


def _same_start(domain: Domain, rollout: Rollout) -> Episode:
    instructed = InstructedGoal(domain.goal_from_json(rollout.goal), rollout.instruction, rollout.goal_split)
    return Episode(instructed, seed=0, start=rollout.observations[0])
