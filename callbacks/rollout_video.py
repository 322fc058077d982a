"""Videos of evaluated rollouts: animated GIFs in TensorBoard and in the run folder."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.callbacks.rollout_gif import GifStyle, evaluated_panel, show_gif
from kalm.core.errors import require
from kalm.runs.evaluated import EvaluatedPolicy


class RolloutVideo(Callback):
    """Draws the first evaluated rollouts of every goal split, with the instruction and what became of it.

    The episodes of an evaluation are fixed, so a video shows the same start at every update. The latest ones are also
    written to ``videos/<split>-<number>.gif`` in the run folder.
    """

    def __init__(
        self,
        num_rollouts: int = 1,
        max_steps: int = 25,
        size: int = 224,
        seconds_per_step: float = 0.25,
        every_n_validations: int = 1,
    ) -> None:
        """Choose what to draw.

        Args:
            num_rollouts: Rollouts a goal split.
            max_steps: Steps drawn of a rollout, its first ones.
            size: Pixels along each side.
            seconds_per_step: How long a frame stays.
            every_n_validations: Draw at the first of every so many validations during fit; test always draws.
        """
        require(num_rollouts >= 1, "num_rollouts", num_rollouts, "1 or more")
        require(every_n_validations >= 1, "every_n_validations", every_n_validations, "1 or more")
        self.num_rollouts, self.every_n_validations = num_rollouts, every_n_validations
        self.style = GifStyle(max_steps, size, seconds_per_step)
        self._num_validations = 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw validation rollouts."""
        if trainer.sanity_checking:
            return
        if self._num_validations % self.every_n_validations == 0:
            self._write_videos(trainer, cast(EvaluatedPolicy, pl_module), "eval")
        self._num_validations += 1

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw test rollouts."""
        self._write_videos(trainer, cast(EvaluatedPolicy, pl_module), "test")

    def state_dict(self) -> dict[str, Any]:
        """How many validations were made, so that a resumed run draws at the same ones."""
        return {"num_validations": self._num_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._num_validations = state_dict["num_validations"]

    def _write_videos(self, trainer: Trainer, policy: EvaluatedPolicy, prefix: str) -> None:
        if not trainer.is_global_zero or not policy.episode_results:
            return
        for split in trainer.datamodule.domain.goal_splits:  # type: ignore[attr-defined]
            results = [r for r in policy.episode_results if r.episode.instructed.goal_split == split]
            for number, result in enumerate(results[: self.num_rollouts]):
                told, panels = result.episode.instructed.instruction, [evaluated_panel(result)]
                name, tag = f"{split}-{number}", f"{prefix}/{split}/rollout_{number}"
                show_gif(trainer, name, tag, panels, told, self.style, policy.num_updates)
