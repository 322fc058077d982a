"""Videos of what was learned from beside what was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kalm.callbacks.side_by_side_video import SideBySideVideo
from kalm.data.rollout_sources import ImaginedRollouts
from kalm.rl.bc import BC
from tests.callbacks.judged import walk
from tests.data.rollouts import write_store
from tests.rl.helpers import chain_data, trainer


class AlwaysRight(BC):
    """Steps to the right."""

    def act(self, observation: Any, goal_embedding: Any) -> Any:
        """Action 1 everywhere."""
        return super().act(observation, goal_embedding) * 0 + 1


def fitted(folder: Path, **options: Any) -> list[str]:
    """Tags of the pictures that a short training leaves in TensorBoard."""
    data = chain_data(folder, **options)
    logger = TensorBoardLogger(folder, name="", version="")
    trainer(folder, 5, [SideBySideVideo(size=64)], logger=logger).fit(AlwaysRight(data.spec), data)
    logger.finalize("success")
    return sorted(EventAccumulator(str(folder), size_guidance={"images": 0}).Reload().Tags()["images"])


def frames_of(path: Path) -> list[Any]:
    """Every picture of an animation as numbers."""
    frames = []
    with Image.open(path) as animation:
        for number in range(animation.n_frames):  # type: ignore[attr-defined]
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB"), dtype=int))
    return frames


def test_an_imagined_rollout_is_drawn_beside_the_policy_from_its_start(tmp_path: Path) -> None:
    """Both begin in cell 2; the imagined one is there after a step, the policy walks right until time runs out."""
    write_store(tmp_path / "imagined", [walk([2, 1], [0], goal=1, split="easy")])
    tags = fitted(tmp_path, imagined=ImaginedRollouts([str(tmp_path / "imagined")]))
    assert tags == ["side_by_side/easy", "side_by_side/train"]
    frames = frames_of(tmp_path / "videos" / "side-by-side-easy.gif")
    assert frames[0].shape == (64, 128, 3)
    np.testing.assert_array_equal(frames[0][24:44, :64], frames[0][24:44, 64:])
    assert frames[-1][0, 0, 1] > frames[-1][0, 0, 0], "the imagined rollout meets its goal"
    assert frames[-1][0, 64, 0] > frames[-1][0, 64, 1], "the policy does not"


def test_without_imagination_only_real_rollouts_are_shown(tmp_path: Path) -> None:
    """Training goals have real rollouts; the other splits have none and no picture."""
    assert fitted(tmp_path) == ["side_by_side/train"]
