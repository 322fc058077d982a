"""What proxy rewards share: thresholds at 95 % precision in each checkpoint, and a table after the test (TEDUO, B.4).

Shape letters: B goals, N states of each, M states of one goal; ... what one state is.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from kalm.core.durable import write_durably
from kalm.core.errors import DataError, require
from kalm.data.label_data import Examined, LabelData
from kalm.data.labelled_goals import Part
from kalm.rl.rewards.scores import choose_threshold, scores
from kalm.runs.folder import PROXY_FILE

REWARD = "kalm_proxy_reward"  # key of a checkpoint: how the model is built, thresholds, whose labels it learned
_BLOCK = 4096  # states at once

# (goal, probability, met by the judge, truth, whether the goal was learned)
_Row = tuple[str, NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], bool]


class ProxyReward(LightningModule):
    """A network that says how likely states are to meet goals, trained on ``LabelData``.

    Attributes:
        sizes: What its constructor needs to build it again, in plain JSON types.
        thresholds: Task -> probability from which a goal counts as met; known once a checkpoint was saved or loaded.
    """

    def __init__(self, sizes: dict[str, Any], precision: float) -> None:
        """Begin without thresholds."""
        super().__init__()
        require(0 < precision <= 1, "precision", precision, "in (0, 1]")
        self.sizes, self._precision = sizes, precision
        self.thresholds: dict[str, float] = {}
        self._rows: list[_Row] = []

    @property
    def data(self) -> LabelData:
        """The data module that is learned from or tested on."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, LabelData):
            raise DataError(f"data is {type(data).__name__}; a proxy reward learns from LabelData")
        return data

    @abstractmethod
    def log_likelihood(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Of a batch as ``LabelData.batch`` makes it, log P(met) and log P(not met), float32 of shape (B, N)."""

    @torch.no_grad()
    def probabilities(self, batch: dict[str, Tensor]) -> NDArray[np.float32]:
        """P(met) of one goal and M states: a batch with B = 1; float32 of shape (M,), in evaluation mode."""
        was_training = self.training
        self.eval()
        state, rest = batch["state"], {key: value for key, value in batch.items() if key not in ("state", "met")}
        some = [
            self.log_likelihood(self._here({**rest, "state": state[:, first : first + _BLOCK]}))[0][0].exp().cpu()
            for first in range(0, state.shape[1], _BLOCK)
        ]
        self.train(was_training)
        found: NDArray[np.float32] = torch.cat(some).clamp(0, 1).numpy() if some else np.zeros(0, np.float32)
        return found

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """One update of the binary cross-entropy, a mean over the batch, which holds as many that meet as do not."""
        met, unmet = self.log_likelihood(batch)
        loss = -torch.where(batch["met"], met, unmet).mean()
        if not torch.isfinite(loss):
            raise DataError(
                f"train/proxy_loss is {loss.item()} at update {self.global_step}; it must be finite. Lower "
                "learning_rate"
            )
        self.log("train/proxy_loss", loss.detach(), batch_size=1)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Choose thresholds for the weights that are being saved, on states that nothing was learned from."""
        self.thresholds = self._choose_thresholds(self.data.examined(Part.calibration, only_known=True))
        checkpoint[REWARD] = {
            "model": type(self).__name__,
            "sizes": self.sizes,
            "thresholds": self.thresholds,
            "precision": self._precision,
            "encoder": self.data.encoder.fingerprint,
            **json.loads(json.dumps(self.data.description)),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the thresholds over."""
        self.thresholds = dict(checkpoint[REWARD]["thresholds"])

    def test_step(self, examined: Examined, batch_index: int) -> None:
        """Answer about one goal."""
        goal = examined.goal
        row = goal.goal.task, self.probabilities(examined.batch), examined.met, examined.truth, examined.is_known
        self._rows.append(row)

    def on_test_epoch_end(self) -> None:
        """Write the table into the run's folder, and log recall and precision against the truth."""
        table = self.table(self._rows)
        self._rows = []
        for row in table:
            if row["against"] == "truth" and row["goals"] == "learned":
                for figure in ("precision", "recall"):
                    if row[figure] is not None:
                        self.log(f"test/{row['task']}/{figure}", row[figure])
        content = {"rows": table, "thresholds": self.thresholds, **self.data.description}
        if self.trainer.is_global_zero:  # every device has examined all
            path = Path(self.trainer.default_root_dir) / PROXY_FILE
            write_durably(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    def table(self, rows: Sequence[_Row]) -> list[dict[str, Any]]:
        """Table B.4: a row for each task, for learned goals and held-out ones, against the truth and the judge."""
        table = []
        for task in sorted({row[0] for row in rows}):
            for name, is_known in (("learned", True), ("held_out", False)):
                own = [row for row in rows if row[0] == task and row[4] == is_known]
                if not own:
                    continue
                probability, met, truth = (np.concatenate([row[place] for row in own]) for place in (1, 2, 3))
                called = probability >= self.thresholds.get(task, 2.0)
                for against, answer in (("truth", truth), ("judge", met)):
                    figures = scores(probability, called, answer)
                    table.append({"task": task, "goals": name, "num_goals": len(own), "against": against, **figures})
        return table

    def _choose_thresholds(self, examined: Iterable[Examined]) -> dict[str, float]:
        by_task: dict[str, list[tuple[NDArray[np.float32], NDArray[np.bool_]]]] = {}
        for one in examined:
            by_task.setdefault(one.goal.goal.task, []).append((self.probabilities(one.batch), one.met))
        thresholds = {}
        for task, found in sorted(by_task.items()):
            probability, met = (np.concatenate(column) for column in zip(*found, strict=True))
            thresholds[task] = choose_threshold(probability, met, self._precision)
        return thresholds

    def _here(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.device) for key, value in batch.items()}
