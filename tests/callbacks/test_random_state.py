"""A training step's random numbers depend on the seed and the step, on nothing that happened before."""

from __future__ import annotations

import random
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from kalm.callbacks.every_run import RandomState, seed_generators


class Drawing(lightning.LightningModule):
    """Draws from every generator at every step and keeps what it drew."""

    def __init__(self) -> None:
        """One weight, so that there is something to train."""
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.drawn: list[tuple[float, float, float]] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Draw."""
        self.drawn.append((random.random(), float(np.random.random()), float(torch.rand(()))))  # noqa: NPY002
        return self.weight.sum()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Draw as well: evaluation that moves the generators must not move training."""
        random.random(), np.random.random(), torch.rand(())  # noqa: NPY002

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain descent."""
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, max_steps: int, seed: int = 5, ckpt_path: Path | None = None, **options: object) -> Drawing:
    """Train; the model with what it drew."""
    module = Drawing()
    trainer = lightning.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[RandomState(seed)],
        **{"limit_val_batches": 0, "enable_checkpointing": False, **options},  # type: ignore[arg-type]
    )
    data = DataLoader(TensorDataset(torch.zeros(8, 1)), batch_size=2)
    trainer.fit(module, data, data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*not resumable")
def test_resumed_run_draws_what_an_uninterrupted_one_draws(tmp_path: Path) -> None:
    """Stopped in the middle of the second epoch, resumed with the generators in any state."""
    whole = fit(tmp_path, 10).drawn
    first = fit(tmp_path, 6).drawn
    torch.rand(17)
    second = fit(tmp_path, 10, ckpt_path=tmp_path / "last.ckpt").drawn
    assert first + second == whole
    assert len(set(whole)) == 10


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_evaluation_between_steps_changes_no_draw(tmp_path: Path) -> None:
    """With validation after every second step and without, training comes to the same."""
    without = fit(tmp_path, 8).drawn
    evaluated = fit(tmp_path, 8, limit_val_batches=1.0, val_check_interval=2).drawn
    assert evaluated == without
    assert fit(tmp_path, 8, seed=6).drawn != without


def test_equal_integers_seed_equally_and_others_differ() -> None:
    """Seed, process and step each count."""
    drawn = set()
    for entropy in [(1, 0, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0), (1, 0, 3)]:
        seed_generators(*entropy)
        drawn.add((random.random(), float(np.random.random()), float(torch.rand(()))))  # noqa: NPY002
    assert len(drawn) == 4
