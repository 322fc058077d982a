"""Rollouts as an animated GIF, one or several side by side, and how it gets into TensorBoard.

TensorBoard's own ``add_video`` does not work with moviepy 2, so the image summary is written here.

Shape letters: T steps, O numbers in an observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import cast

import gymnasium as gym
import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw
from tensorboard.compat.proto.summary_pb2 import Summary

from kalm.core.errors import require
from kalm.core.goal import FloatArray
from kalm.core.rollout import Rollout
from kalm.envs.base import Domain
from kalm.envs.drawing import default_font
from kalm.envs.simulation import EpisodeResult

Color = tuple[int, int, int]

_GOOD_COLOR, _BAD_COLOR, _CAPTION_COLOR = (20, 120, 40), (170, 30, 30), (60, 60, 60)
_LAST_FRAME_SECONDS = 1.5


@dataclass(frozen=True)
class GifStyle:
    """How rollouts are drawn: their first so many steps, pixels along each side, how long a frame stays."""

    max_steps: int
    size: int
    seconds_per_step: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.max_steps >= 1, "max_steps", self.max_steps, "1 or more")
        require(self.size >= 1, "size", self.size, "1 or more")


@dataclass(frozen=True)
class Panel:
    """One rollout of a picture.

    Attributes:
        observations: Shape (T + 1, O), each rollout with its own T.
        verdict: Written on the last frame: what became of the rollout.
        is_good: Whether the last frame is green, else red.
        caption: Written on every frame: whose rollout it is.
    """

    observations: FloatArray
    verdict: str
    is_good: bool
    caption: str = ""


def imagined_panel(domain: Domain, rollout: Rollout, caption: str = "") -> Panel:
    """A recorded or imagined rollout, with the domain's verdicts.

    What left the world cannot be drawn; it is shown at the world's edge, and its verdict says the rest.
    """
    space = cast(gym.spaces.Box, domain.observation_space)  # nothing else is imagined
    is_plausible = not any(rollout.violations.values())
    verdict = f"{'meets its goal' if rollout.is_success else 'misses'}, {'' if is_plausible else 'im'}plausible"
    drawable = np.clip(np.nan_to_num(rollout.observations), space.low, space.high)
    return Panel(drawable, verdict, rollout.is_success and is_plausible, caption)


def evaluated_panel(result: EpisodeResult, caption: str = "") -> Panel:
    """What a policy did in the simulator."""
    verdict = f"{'success' if result.is_success else 'failed'} after {result.num_steps} steps"
    return Panel(result.observations, verdict, result.is_success, caption)


def rollout_gif(domain: Domain, panels: Sequence[Panel], instruction: str, style: GifStyle) -> bytes:
    """Draw rollouts from left to right, a frame a step, the instruction over each; it plays forever.

    A rollout that ends before its neighbours waits for them.
    """
    columns = [_frames(domain, panel, instruction, style) for panel in panels]
    rows = ([column[min(index, len(column) - 1)] for column in columns] for index in range(max(map(len, columns))))
    frames = [_with_palette(Image.fromarray(np.hstack(list(map(np.asarray, row))))) for row in rows]
    milliseconds = [round(1000 * style.seconds_per_step)] * len(frames)
    milliseconds[-1] = round(1000 * _LAST_FRAME_SECONDS)
    content = BytesIO()
    frames[0].save(
        content, format="GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, disposal=2
    )
    return content.getvalue()


def show_gif(
    trainer: Trainer, name: str, tag: str, panels: Sequence[Panel], instruction: str, style: GifStyle, update: int
) -> None:
    """Draw rollouts into ``videos/<name>.gif`` of the run folder, replacing the last, and into TensorBoard by tag."""
    gif = rollout_gif(trainer.datamodule.domain, panels, instruction, style)  # type: ignore[attr-defined]
    folder = Path(trainer.default_root_dir) / "videos"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.gif").write_bytes(gif)
    width, height = Image.open(BytesIO(gif)).size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
    summary = Summary(value=[Summary.Value(tag=tag, image=image)])
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment._get_file_writer().add_summary(summary, update)


def _frames(domain: Domain, panel: Panel, instruction: str, style: GifStyle) -> list[Image.Image]:
    shown = panel.observations[: style.max_steps + 1]
    frames = [Image.fromarray(domain.draw(observation, instruction, style.size)) for observation in shown]
    if panel.caption:
        for frame in frames[:-1]:
            _write_below(frame, panel.caption, _CAPTION_COLOR)
    color = _GOOD_COLOR if panel.is_good else _BAD_COLOR
    _write_below(frames[-1], f"{panel.caption}: {panel.verdict}" if panel.caption else panel.verdict, color)
    ImageDraw.Draw(frames[-1]).rectangle((0, 0, style.size - 1, style.size - 1), outline=color, width=3)
    return frames


def _with_palette(frame: Image.Image) -> Image.Image:
    """At most 256 colours: exactly those of the frame if they are so few, else by octree, the cheapest of pillow's."""
    is_exact = frame.getcolors(256) is not None
    return frame.quantize(method=Image.Quantize.MEDIANCUT if is_exact else Image.Quantize.FASTOCTREE)


def _write_below(frame: Image.Image, text: str, color: Color) -> None:
    font = default_font(max(9, frame.height // 16))
    place = 4, frame.height - 4
    ImageDraw.Draw(frame).text(place, text, fill="white", font=font, anchor="lb", stroke_width=3, stroke_fill=color)
