"""Random numbers of a training step that depend on the seed and on the step alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class RandomState(Callback):
    """Seeds Python's, NumPy's and torch's global generators anew for every training step.

    The state of every generator is then a pure function of (seed, process, step): a resumed run draws what an
    uninterrupted one draws, and validation, imagination or logging between two steps cannot change the training that
    follows. Nothing needs to be stored in a checkpoint for that, and it holds on several devices, where Lightning
    would store the state of the first process only.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        """Remember the seed."""
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the step; micro-batches of one accumulated update are steps of their own."""
        step = trainer.fit_loop.epoch_loop.total_batch_idx
        seed_generators(self.seed, trainer.global_rank, step)


def seed_generators(*entropy: int) -> None:
    """Seed the global generators of this process from integers; different integers give unrelated streams."""
    words = np.random.SeedSequence(entropy).generate_state(4, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002 - libraries that draw from the old global generator are why it is seeded
    seed = int(words[2]) << 32 | int(words[3])
    torch.default_generator.manual_seed(seed)
    # torch.manual_seed would queue a stack trace for a CUDA device that this process has not touched
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
