"""Videos while the language model is grounded: what it believes the world does, and beside it what the world did."""

from __future__ import annotations

from typing import cast

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from kalm.callbacks.imagination import ValidatedRollouts
from kalm.callbacks.rollout_gif import GifStyle, imagined_panel, show_gif
from kalm.core.errors import require
from kalm.core.goal import InstructedGoal
from kalm.core.rollout import Rollout
from kalm.data.language_batches import WorkItem
from kalm.envs.base import Domain
from kalm.llm.grounding.grounded_llm import GroundedLLM


class ImaginedVideo(ValidatedRollouts):
    """Draws the first rollouts of every goal split that a validation of a ``GroundedLLM`` imagines.

    The first real rollouts that the validation holds are drawn as well, each beside what the model imagines for the
    same instruction from the same start. All these are fixed, so a video shows the same at every update. Its last
    frame says whether the rollout met its goal and whether it is plausible. The latest ones are also written to
    ``videos/imagined-<split>-<number>.gif`` and ``videos/real-imagined-<number>.gif`` in the run folder.
    """

    def __init__(
        self, num_rollouts: int = 1, max_steps: int = 25, size: int = 224, seconds_per_step: float = 0.25
    ) -> None:
        """Choose what to draw.

        Args:
            num_rollouts: Rollouts a goal split, and pairs of a real and an imagined one.
            max_steps: Steps drawn of a rollout, its first ones.
            size: Pixels along each side.
            seconds_per_step: How long a frame stays.
        """
        require(num_rollouts >= 1, "num_rollouts", num_rollouts, "1 or more")
        super().__init__()
        self.num_rollouts = num_rollouts
        self.style = GifStyle(max_steps, size, seconds_per_step)

    def report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the first rollouts of every split, and real ones beside what the model makes of them."""
        if not trainer.is_global_zero:
            return
        domain: Domain = trainer.datamodule.domain  # type: ignore[attr-defined]
        for split in dict.fromkeys(rollout.goal_split for rollout in self.imagined):
            of_split = [rollout for rollout in self.imagined if rollout.goal_split == split and len(rollout)]
            for number, rollout in enumerate(of_split[: self.num_rollouts]):
                name, tag = f"imagined-{split}-{number}", f"imagine/{split}/rollout_{number}"
                panels = [imagined_panel(domain, rollout)]
                show_gif(trainer, name, tag, panels, rollout.instruction, self.style, trainer.global_step)
        recorded = self.real[: self.num_rollouts]
        if not recorded:
            return
        again = cast(GroundedLLM, pl_module).imagine([_work_item(domain, rollout) for rollout in recorded])
        for number, (real, imagined) in enumerate(zip(recorded, again, strict=True)):
            panels = [imagined_panel(domain, real, "real"), imagined_panel(domain, imagined, "imagined")]
            name, tag = f"real-imagined-{number}", f"imagine/beside_real/rollout_{number}"
            show_gif(trainer, name, tag, panels, real.instruction, self.style, trainer.global_step)


def _work_item(domain: Domain, rollout: Rollout) -> WorkItem:
    """To imagine what a real rollout was made for, from where it began."""
    instructed = InstructedGoal(domain.goal_from_json(rollout.goal), rollout.instruction, rollout.goal_split)
    start = rollout.observations[0].astype(np.float32)
    return WorkItem(instructed, start, instructed.goal.max_steps, seed=0)
