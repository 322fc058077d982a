"""Videos of evaluated rollouts: animated GIFs in TensorBoard and in the run folder.

TensorBoard's own ``add_video`` does not work with moviepy 2, so the image summary is written here.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from tensorboard.compat.proto.summary_pb2 import Summary

from kalm.envs.base import Domain
from kalm.errors import KalmError
from kalm.evaluation import EpisodeResult
from kalm.rl.base import OfflineRLModule
from kalm.types import GoalSplit

_SUCCESS_COLOR, _FAILURE_COLOR = (20, 120, 40), (170, 30, 30)
_LAST_FRAME_SECONDS = 1.5


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
        for name, value in (("num_rollouts", num_rollouts), ("max_steps", max_steps), ("size", size)):
            if value < 1:
                raise KalmError(f"rollout_video: {name} is {value}; it must be 1 or more")
        if every_n_validations < 1:
            raise KalmError(f"rollout_video: every_n_validations is {every_n_validations}; it must be 1 or more")
        self.num_rollouts, self.max_steps, self.size = num_rollouts, max_steps, size
        self.seconds_per_step, self.every_n_validations = seconds_per_step, every_n_validations
        self._num_validations = 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw validation rollouts."""
        if trainer.sanity_checking:
            return
        if self._num_validations % self.every_n_validations == 0:
            self._write_videos(trainer, cast(OfflineRLModule, pl_module), "eval")
        self._num_validations += 1

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw test rollouts."""
        self._write_videos(trainer, cast(OfflineRLModule, pl_module), "test")

    def state_dict(self) -> dict[str, Any]:
        """How many validations were made, so that a resumed run draws at the same ones."""
        return {"num_validations": self._num_validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._num_validations = state_dict["num_validations"]

    def _write_videos(self, trainer: Trainer, policy: OfflineRLModule, prefix: str) -> None:
        if not trainer.is_global_zero or not policy.episode_results:
            return
        domain: Domain = trainer.datamodule.domain  # type: ignore[attr-defined]
        folder = Path(trainer.default_root_dir) / "videos"
        folder.mkdir(parents=True, exist_ok=True)
        for split in GoalSplit:
            results = [r for r in policy.episode_results if r.episode.instructed.goal_split == split]
            for number, result in enumerate(results[: self.num_rollouts]):
                gif = self._gif(domain, result)
                (folder / f"{split.label}-{number}.gif").write_bytes(gif)
                _add_to_tensorboard(
                    trainer, f"{prefix}/{split.label}/rollout_{number}", gif, self.size, policy.num_updates
                )

    def _gif(self, domain: Domain, result: EpisodeResult) -> bytes:
        """The rollout as an animated GIF that plays forever."""
        instruction = result.episode.instructed.instruction
        shown = result.observations[: self.max_steps + 1]
        frames = [Image.fromarray(domain.draw(observation, instruction, self.size)) for observation in shown]
        frames[-1] = _with_verdict(frames[-1], result)
        milliseconds = [round(1000 * self.seconds_per_step)] * len(frames)
        milliseconds[-1] = round(1000 * _LAST_FRAME_SECONDS)
        content = BytesIO()
        frames[0].save(
            content, format="GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, disposal=2
        )
        return content.getvalue()


def _with_verdict(frame: Image.Image, result: EpisodeResult) -> Image.Image:
    """A copy of the last frame that says what became of the episode."""
    verdict = "success" if result.is_success else "failed"
    color = _SUCCESS_COLOR if result.is_success else _FAILURE_COLOR
    frame = frame.copy()
    canvas = ImageDraw.Draw(frame)
    font = ImageFont.load_default(size=max(9, frame.height // 16))
    text = f"{verdict} after {result.num_steps} steps"
    canvas.text((4, frame.height - 4), text, fill="white", font=font, anchor="lb", stroke_width=3, stroke_fill=color)
    canvas.rectangle((0, 0, frame.width - 1, frame.height - 1), outline=color, width=3)
    return frame


def _add_to_tensorboard(trainer: Trainer, tag: str, gif: bytes, size: int, step: int) -> None:
    image = Summary.Image(height=size, width=size, colorspace=3, encoded_image_string=gif)
    summary = Summary(value=[Summary.Value(tag=tag, image=image)])
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment._get_file_writer().add_summary(summary, step)
