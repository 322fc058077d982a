"""The two loggers of every run, TensorBoard events and metrics.csv, in the run folder and safe to resume; and tables.

The cells of a table are shown as they are: no sentence of a user becomes markup on TensorBoard's text page.
"""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from kalm.core.durable import write_durably

_FLUSH_SECONDS = 10
_MARKDOWN = "\\`*_{}[]()#+-.!|~"


class RunTensorBoardLogger(TensorBoardLogger):
    """TensorBoard events directly in the run folder, without a ``version_0`` folder per start."""

    def __init__(self, folder: str, resumed_update: int | None = None) -> None:
        """Go on from an update, if one is given: what a killed run logged after it is forgotten."""
        purge_step = None if resumed_update is None else resumed_update + 1
        super().__init__(folder, "", "", default_hp_metric=False, purge_step=purge_step, flush_secs=_FLUSH_SECONDS)

    @rank_zero_only
    def save(self) -> None:
        """Leave writing to the event writer's own thread; Lightning would add an hparams.yaml, kalm has config.yaml."""


class MetricsFileLogger(Logger):
    """One CSV file, one row a logged step, one column a metric; rows are added on resume, never lost.

    Lightning's CSVLogger deletes the file of an earlier run in the same folder, which a resumed run's folder always
    holds.
    """

    def __init__(self, path: str | Path, resumed_update: int | None = None) -> None:
        """Go on from an update, if one is given: earlier rows up to it are kept, later ones are dropped."""
        super().__init__()
        self.path = Path(path)
        self._resumed_update = resumed_update
        self._header: list[str] | None = None
        self._pending: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """Part of Lightning's interface; the run folder already has a name."""
        return ""

    @property
    def version(self) -> str:
        """Part of Lightning's interface; a run folder holds one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Hyper-parameters are in config.yaml, not here."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row of metrics at an update; Lightning calls ``save`` right after."""
        if metrics:
            self._pending.append({**metrics, "step": "" if step is None else int(step)})

    @rank_zero_only
    def save(self) -> None:
        """Write the pending rows; a metric that is new becomes a new column of the whole file."""
        if not self._pending:
            return
        header = self._start() if self._header is None else self._header
        new = {name for row in self._pending for name in row} - set(header)
        if new or not self.path.exists():
            rows = [*self._read(), *self._pending]
            self._header = ["step", *sorted({*header, *new} - {"step"})]
            write_durably(self.path, _to_csv(self._header, rows, with_header=True).encode())
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(_to_csv(header, self._pending, with_header=False))
        self._pending = []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is pending when the run ends, however it ends."""
        self.save()

    def _start(self) -> list[str]:
        """Take over the rows of an earlier part of this run, or start the file; its columns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = self._read() if self._resumed_update is not None else []
        kept = [row for row in rows if row["step"] and int(row["step"]) <= (self._resumed_update or 0)]
        self._header = list(kept[0]) if kept else []
        if kept:
            write_durably(self.path, _to_csv(self._header, kept, with_header=True).encode())
        else:
            self.path.unlink(missing_ok=True)
        return self._header

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


def _to_csv(header: list[str], rows: list[dict[str, Any]], with_header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=header, lineterminator="\n")
    if with_header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; what looks like Markdown or HTML in a cell is escaped."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    return "\n".join([*lines, *(" | ".join(map(_as_text, row)) for row in rows)])


def show_table(trainer: Trainer, tag: str, table: str) -> None:
    """Write a table to TensorBoard, at the update that the trainer has reached."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, table, trainer.global_step)


def _as_text(cell: str) -> str:
    literal = "".join(f"\\{character}" if character in _MARKDOWN else character for character in cell)
    return escape(" ".join(literal.split()))
