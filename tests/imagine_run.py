"""A process that imagines goals of the chain, on one device or several; tests start it and kill it.

python -m tests.imagine_run FOLDER NUM_DEVICES NUM_EASY [SHARD]    kills the process that has stored SHARD
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kalm.callbacks.rollout_writer import RolloutWriter
from kalm.data.goal_data import GoalData
from kalm.llm.grounding.grounded_llm import GroundedLLM
from kalm.llm.imagination.rollout_engine import ImaginationSettings
from tests.data.test_goal_data import goal_data
from tests.llm.models import grounded_llm
from tests.rl.helpers import trainer


class KilledAfter(Callback):
    """Kills its own process, and no other, once a shard is stored."""

    def __init__(self, shard: str) -> None:
        """Name the shard."""
        self.shard = shard

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *place: int
    ) -> None:
        """Die without a word, as for want of memory."""
        if batch.name == self.shard:
            os.kill(os.getpid(), signal.SIGKILL)


def still_model() -> GroundedLLM:
    """An untrained model that predicts no change, so that no rollout leaves the world."""
    model = grounded_llm(imagination=ImaginationSettings(temperature=1.0))
    with torch.no_grad():
        for parameter in model.codec.change_head.parameters():
            parameter.zero_()
    return model


def work(folder: Path, num_easy: int) -> GoalData:
    """Seven rephrased goals and so many easy ones, in shards of four."""
    return goal_data(folder, num_rollouts={"rephrase": 7, "easy": num_easy}, rollouts_per_shard=4)


def imagine(folder: Path, num_devices: int, num_easy: int, killed_after: str = "") -> None:
    """Imagine into ``folder/run``."""
    callbacks = [RolloutWriter(), KilledAfter(killed_after)]
    strategy = "ddp" if num_devices > 1 else "auto"
    runner = trainer(folder / "run", -1, callbacks, devices=num_devices, strategy=strategy)
    runner.predict(still_model(), work(folder, num_easy), return_predictions=False)


if __name__ == "__main__":
    imagine(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
