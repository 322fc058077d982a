"""Videos of imagined rollouts: one a split, with the verdict, also of what left the world."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kalm.callbacks.imagined_video import ImaginedVideo
from kalm.core.errors import KalmError
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from tests.callbacks.judged import validate, walk

MEETS = walk([2, 3, 4], [1, 1], goal=4)
MISSES = walk([2, 1, 0], [0, 0], goal=4)
JUMPS = walk([2, 4], [1], goal=4)
EASY = walk([2, 3], [1], goal=3, split="easy")


def last_frame_is_green(folder: Path, rollout: Rollout) -> bool:
    """The colour of the frame around the last picture of the only video."""
    validate(folder, ImaginedVideo(size=64), {"imaginary": [rollout]})
    with Image.open(folder / "videos" / "imagined-train-0.gif") as animation:
        animation.seek(animation.n_frames - 1)  # type: ignore[attr-defined]
        red, green, _ = np.asarray(animation.convert("RGB"), dtype=int)[0, 0]
    return bool(green > red)


def test_tensorboard_holds_the_first_rollout_of_each_split(tmp_path: Path) -> None:
    """A frame for the start and one a step; the same picture lies in the run folder."""
    validate(tmp_path, ImaginedVideo(size=48), {"imaginary": [EASY, MEETS]}, {"imaginary": [JUMPS]})
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert sorted(events.Tags()["images"]) == ["imagine/easy/rollout_0", "imagine/train/rollout_0"]
    (image,) = events.Images("imagine/train/rollout_0")
    animation = Image.open(BytesIO(image.encoded_image_string))
    assert animation.format == "GIF"
    assert getattr(animation, "n_frames", 1) == 3
    assert (tmp_path / "videos" / "imagined-train-0.gif").read_bytes() == image.encoded_image_string


def test_a_real_rollout_is_drawn_beside_an_imagined_one_from_its_start(tmp_path: Path) -> None:
    """Left three steps to the goal, right the model's one step to the left: it waits for the end with its verdict."""
    reals = [walk([1, 2, 3, 4], [1, 1, 1], goal=4, source=Source.REAL), walk([3, 4], [1], goal=4, source=Source.REAL)]
    validate(tmp_path, ImaginedVideo(size=64), {"real": reals}, {"real": reals})
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["imagine/beside_real/rollout_0"]
    (image,) = events.Images("imagine/beside_real/rollout_0")
    assert (image.width, image.height) == (128, 64)
    content = (tmp_path / "videos" / "real-imagined-0.gif").read_bytes()
    assert content == image.encoded_image_string
    with Image.open(BytesIO(content)) as animation:
        assert getattr(animation, "n_frames", 1) == 4
        frames = []
        for number in range(4):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB"), dtype=int))
    corners = [(frame[0, 0], frame[0, 64]) for frame in frames]
    assert all(np.ptp(left) == 0 for left, _ in corners[:3])  # the chain is drawn in greys
    assert corners[3][0][1] > corners[3][0][0], "the real rollout ends green"
    assert all(right[0] > right[1] for _, right in corners[1:]), "the imagined one is red from its last step on"


def test_green_means_that_the_goal_is_met_and_every_step_plausible(tmp_path: Path) -> None:
    """One that misses and one that jumps to its goal are both red."""
    assert last_frame_is_green(tmp_path, MEETS)
    assert not last_frame_is_green(tmp_path, MISSES)
    assert not last_frame_is_green(tmp_path, JUMPS)


def test_what_left_the_world_is_drawn_at_its_edge(tmp_path: Path) -> None:
    """Observations that are no numbers or huge stop no training."""
    lost = replace(MEETS, observations=np.array([[0, 0, 1, 0, 0], [np.nan] * 5, [1e30] * 5], dtype=np.float32))
    validate(tmp_path, ImaginedVideo(size=32), {"imaginary": [lost]})
    with Image.open(tmp_path / "videos" / "imagined-train-0.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 3


def test_the_next_validation_draws_its_own_rollouts(tmp_path: Path) -> None:
    """Three steps, then one; two rollouts where two are asked for."""
    callback = ImaginedVideo(num_rollouts=2, max_steps=1, size=32)
    validate(tmp_path, callback, {"imaginary": [MEETS, MISSES, JUMPS]})
    names = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert names == ["imagined-train-0.gif", "imagined-train-1.gif"]
    before = (tmp_path / "videos" / names[0]).read_bytes()
    validate(tmp_path, callback, {"imaginary": [MISSES]})
    assert (tmp_path / "videos" / names[0]).read_bytes() != before


@pytest.mark.parametrize("name", ["num_rollouts", "max_steps", "size"])
def test_numbers_below_one_are_refused(name: str) -> None:
    """The error names the option."""
    with pytest.raises(KalmError, match=f"{name} is 0"):
        ImaginedVideo(**{name: 0})
