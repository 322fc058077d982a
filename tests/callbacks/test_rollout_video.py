"""Videos of rollouts: frames, length, and where they are written."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kalm.callbacks.rollout_video import RolloutVideo
from kalm.core.errors import KalmError
from kalm.rl.bc import BC
from tests.rl.helpers import chain_data, trainer


def evaluate_with_videos(folder: Path, **options: Any) -> BC:
    """Test an untrained policy, drawing videos into TensorBoard and the folder."""
    data = chain_data(folder, evaluation__num_test_episodes=4)
    policy = BC(data.spec)
    logger = TensorBoardLogger(folder, name="", version="")
    callback = RolloutVideo(size=64, **options)
    trainer(folder, -1, [callback], logger=logger).test(policy, data, verbose=False)
    logger.finalize("success")
    return policy


def num_steps(animation: Any) -> int:
    """Steps by the time it plays, 0.25 s each and 1.5 s for the end: Pillow joins frames that show the same."""
    durations = []
    for frame in range(animation.n_frames):
        animation.seek(frame)
        durations.append(animation.info["duration"])
    return round((sum(durations) - 1500) / 250)


def test_tensorboard_holds_one_animation_a_split(tmp_path: Path) -> None:
    """Each is a GIF that shows the start and every step, at the policy's update."""
    policy = evaluate_with_videos(tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    splits = ("train", "rephrase", "easy", "hard")
    assert sorted(events.Tags()["images"]) == sorted(f"test/{split}/rollout_0" for split in splits)
    first = policy.episode_results[0]
    (image,) = events.Images("test/train/rollout_0")
    assert image.step == 0
    animation = Image.open(BytesIO(image.encoded_image_string))
    assert animation.format == "GIF"
    assert (animation.width, animation.height) == (64, 64) == (image.width, image.height)
    assert num_steps(animation) == first.num_steps
    assert (tmp_path / "videos" / "train-0.gif").read_bytes() == image.encoded_image_string


def test_a_long_rollout_is_cut_and_more_rollouts_can_be_asked_for(tmp_path: Path) -> None:
    """Two rollouts a split, at most three steps of each."""
    policy = evaluate_with_videos(tmp_path, num_rollouts=2, max_steps=3)
    assert len(list((tmp_path / "videos").iterdir())) == 8
    for number, result in enumerate(policy.episode_results[:2]):
        with Image.open(tmp_path / "videos" / f"train-{number}.gif") as animation:
            assert num_steps(animation) == min(3, result.num_steps)


def test_the_last_frame_says_what_became_of_the_rollout(tmp_path: Path) -> None:
    """A green frame around a success, a red one around a failure, none around the steps before."""
    policy = evaluate_with_videos(tmp_path, num_rollouts=4, max_steps=20)
    seen = set()
    for split, results in (("train", policy.episode_results[:4]), ("easy", policy.episode_results[8:12])):
        for number, result in enumerate(results):
            with Image.open(tmp_path / "videos" / f"{split}-{number}.gif") as animation:
                animation.seek(0)
                start = np.asarray(animation.convert("RGB"), dtype=int)[0, 0]
                animation.seek(animation.n_frames - 1)  # type: ignore[attr-defined]
                red, green, _ = np.asarray(animation.convert("RGB"), dtype=int)[0, 0]
            assert np.ptp(start) == 0  # the chain is drawn in greys
            assert (green > red) == result.is_success
            seen.add(result.is_success)
    assert seen == {True, False}


def test_videos_are_drawn_at_every_nth_validation(tmp_path: Path) -> None:
    """Validations after updates 5, 10, 15; of every two the first is drawn: 5 and 15."""
    data = chain_data(tmp_path)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    callback = RolloutVideo(size=32, every_n_validations=2)
    options = {"logger": logger, "limit_val_batches": 1.0, "val_check_interval": 1}
    trainer(tmp_path, 15, [callback], **options).fit(BC(data.spec), data)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert [image.step for image in events.Images("eval/train/rollout_0")] == [5, 15]


@pytest.mark.parametrize("name", ["num_rollouts", "max_steps", "size", "every_n_validations"])
def test_numbers_below_one_are_refused(name: str) -> None:
    """The error names the option."""
    with pytest.raises(KalmError, match=f"{name} is 0"):
        RolloutVideo(**{name: 0})
