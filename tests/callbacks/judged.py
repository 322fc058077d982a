"""What the tests of the grounding callbacks share: a model whose validations show given rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from kalm.core.goal import InstructedGoal
from kalm.core.names import Source
from kalm.core.rollout import Rollout
from kalm.data.language_batches import WorkItem
from tests.chain_domain import CELL_NAMES, CellGoal, ChainDomain, one_hot
from tests.rl.helpers import trainer

DOMAIN = ChainDomain()

Outputs = Mapping[str, Sequence[Rollout]]


def walk(
    cells: Sequence[int],
    actions: Sequence[int],
    goal: int,
    split: str = "train",
    source: Source = Source.IMAGINARY,
    instruction: str | None = None,
) -> Rollout:
    """A rollout through these cells with these actions, whether or not they lead there, judged by the chain."""
    instructed = InstructedGoal(CellGoal(goal), instruction or f"go to the {CELL_NAMES[goal]}", split)
    observations = one_hot(np.array(cells))
    return DOMAIN.label_rollout(instructed, observations, np.array(actions, dtype=np.int64), source)


class Shown(lightning.LightningModule):
    """Shows what the data module holds; answers with ``answers[prompt]``, or with the truth if there is none."""

    def __init__(self, answers: Mapping[str, str] | None = None) -> None:
        """Take the answers."""
        super().__init__()
        self.answers = answers or {}

    def validation_step(self, batch: Outputs, batch_index: int) -> Outputs:
        """The batch itself."""
        return batch

    def imagine(self, items: Sequence[WorkItem]) -> list[Rollout]:
        """From each start one step to the left."""
        return [
            walk([int(item.start.argmax()), max(0, int(item.start.argmax()) - 1)], [0], goal=4, instruction="left")
            for item in items
        ]

    def explain(self, rollouts: Sequence[Rollout], prompt: str, num_answers: int = 1) -> list[str]:
        """One text a rollout; the best of several is the truth."""
        answers = self.answers if num_answers == 1 else {}
        return [answers.get(prompt, rollout.instruction) for rollout in rollouts]


class ShownData(lightning.LightningDataModule):
    """Validation steps by their outputs, and what callbacks ask of a data module."""

    def __init__(self, batches: Sequence[Outputs]) -> None:
        """Take one output a step."""
        super().__init__()
        self.domain = DOMAIN
        self.observation_std = torch.full((5,), 0.4)
        self._batches = list(batches)

    def val_dataloader(self) -> Any:
        """One batch a step."""
        return DataLoader(self._batches, batch_size=None)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Rollouts stay what they are."""
        return batch


def validate(
    folder: Path, callback: lightning.Callback, *batches: Outputs, module: lightning.LightningModule | None = None
) -> dict[str, float]:
    """Metrics of one validation, logged into ``folder`` as well."""
    logger = TensorBoardLogger(folder, name="", version="")
    options = {"logger": logger, "limit_val_batches": 1.0}
    (metrics,) = trainer(folder, -1, [callback], **options).validate(
        module or Shown(), ShownData(batches), verbose=False
    )
    logger.finalize("success")
    return dict(metrics)


def logged_text(folder: Path, tag: str) -> str:
    """The latest text of a tag in TensorBoard."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    return str(events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode())
