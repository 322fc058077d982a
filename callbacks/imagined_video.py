"""Videos of imagined rollouts while the language model is grounded: what it believes the world does."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.callbacks.rollout_gif import GifStyle, rollout_gif, show_gif
from kalm.data.rollout import Rollout
from kalm.errors import KalmError
from kalm.types import GoalSplit


class ImaginedVideo(Callback):
    """Draws the first rollouts of every goal split that a validation of a ``GroundedLLM`` imagines.

    The work items of a validation are fixed, so a video shows the same instruction from the same start at every
    update. Its last frame says whether the rollout met its goal and whether it is plausible. The latest ones are also
    written to ``videos/imagined-<split>-<number>.gif`` in the run folder.
    """

    def __init__(
        self, num_rollouts: int = 1, max_steps: int = 25, size: int = 224, seconds_per_step: float = 0.25
    ) -> None:
        """Choose what to draw.

        Args:
            num_rollouts: Rollouts a goal split.
            max_steps: Steps drawn of a rollout, its first ones.
            size: Pixels along each side.
            seconds_per_step: How long a frame stays.
        """
        if num_rollouts < 1:
            raise KalmError(f"imagined_video: num_rollouts is {num_rollouts}; it must be 1 or more")
        self.num_rollouts = num_rollouts
        self.style = GifStyle(max_steps, size, seconds_per_step)
        self._rollouts: dict[GoalSplit, list[Rollout]] = defaultdict(list)

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
        """Keep the first rollouts of every split."""
        for rollout in outputs.get("imaginary", []):
            of_split = self._rollouts[rollout.goal_split]
            if len(of_split) < self.num_rollouts and len(rollout):
                of_split.append(rollout)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw them."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for split, rollouts in self._rollouts.items():
            for number, rollout in enumerate(rollouts):
                gif = self._gif(trainer, rollout)
                name, tag = f"imagined-{split.label}-{number}", f"imagine/{split.label}/rollout_{number}"
                show_gif(trainer, name, tag, gif, self.style.size, trainer.global_step)

    def _gif(self, trainer: Trainer, rollout: Rollout) -> bytes:
        domain = trainer.datamodule.domain  # type: ignore[attr-defined]
        space = domain.observation_space
        # What left the world cannot be drawn; it is shown at the world's edge, and its verdict says the rest.
        drawable = np.clip(np.nan_to_num(rollout.observations), space.low, space.high)
        is_plausible = not any(rollout.violations.values())
        verdict = f"{'meets its goal' if rollout.is_success else 'misses'}, {'' if is_plausible else 'im'}plausible"
        is_good = rollout.is_success and is_plausible
        return rollout_gif(domain, drawable, rollout.instruction, verdict, is_good, self.style)
