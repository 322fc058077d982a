"""A rollout as an animated GIF, and how it gets into TensorBoard.

TensorBoard's own ``add_video`` does not work with moviepy 2, so the image summary is written here.

Shape letters: T steps, O numbers in an observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from tensorboard.compat.proto.summary_pb2 import Summary

from kalm.envs.base import Domain, FloatArray
from kalm.errors import KalmError

_GOOD_COLOR, _BAD_COLOR = (20, 120, 40), (170, 30, 30)
_LAST_FRAME_SECONDS = 1.5


@dataclass(frozen=True)
class GifStyle:
    """How rollouts are drawn.

    Attributes:
        max_steps: Steps drawn of a rollout, its first ones.
        size: Pixels along each side.
        seconds_per_step: How long a frame stays.
    """

    max_steps: int
    size: int
    seconds_per_step: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in (("max_steps", self.max_steps), ("size", self.size)):
            if value < 1:
                raise KalmError(f"rollout video: {name} is {value}; it must be 1 or more")


def rollout_gif(
    domain: Domain, observations: FloatArray, instruction: str, verdict: str, is_good: bool, style: GifStyle
) -> bytes:
    """Draw one frame an observation; it plays forever.

    Args:
        domain: Draws observations.
        observations: Shape (T + 1, O).
        instruction: Written over every frame.
        verdict: Written on the last frame: what became of the rollout.
        is_good: Whether the last frame is green, else red.
        style: How to draw.
    """
    shown = observations[: style.max_steps + 1]
    frames = [Image.fromarray(domain.draw(observation, instruction, style.size)) for observation in shown]
    frames[-1] = _with_verdict(frames[-1], verdict, _GOOD_COLOR if is_good else _BAD_COLOR)
    milliseconds = [round(1000 * style.seconds_per_step)] * len(frames)
    milliseconds[-1] = round(1000 * _LAST_FRAME_SECONDS)
    content = BytesIO()
    frames[0].save(
        content, format="GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, disposal=2
    )
    return content.getvalue()


def show_gif(trainer: Trainer, name: str, tag: str, gif: bytes, size: int, step: int) -> None:
    """Write a GIF to ``videos/<name>.gif`` in the run folder and to TensorBoard.

    Args:
        trainer: Knows folder and loggers.
        name: File name; the latest GIF of a name stays.
        tag: Name in TensorBoard.
        gif: The picture.
        size: Its pixels along each side.
        step: Update counter.
    """
    folder = Path(trainer.default_root_dir) / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.gif").write_bytes(gif)
    image = Summary.Image(height=size, width=size, colorspace=3, encoded_image_string=gif)
    summary = Summary(value=[Summary.Value(tag=tag, image=image)])
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment._get_file_writer().add_summary(summary, step)


def _with_verdict(frame: Image.Image, verdict: str, color: tuple[int, int, int]) -> Image.Image:
    """A copy of a frame that says what became of the rollout."""
    frame = frame.copy()
    canvas = ImageDraw.Draw(frame)
    font = ImageFont.load_default(size=max(9, frame.height // 16))
    canvas.text((4, frame.height - 4), verdict, fill="white", font=font, anchor="lb", stroke_width=3, stroke_fill=color)
    canvas.rectangle((0, 0, frame.width - 1, frame.height - 1), outline=color, width=3)
    return frame
