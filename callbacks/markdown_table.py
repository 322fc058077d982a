"""Tables for TensorBoard's text page, whose cells are shown as they are: no sentence of a user becomes markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

_MARKDOWN = "\\`*_{}[]()#+-.!|~"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; what looks like Markdown or HTML in a cell is escaped."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    return "\n".join([*lines, *(" | ".join(map(_as_text, row)) for row in rows)])


def show_table(trainer: Trainer, tag: str, table: str) -> None:
    """Write a table to TensorBoard, at the update that the trainer has reached."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, table, trainer.global_step)


def _as_text(cell: str) -> str:
    literal = "".join(f"\\{character}" if character in _MARKDOWN else character for character in cell)
    return escape(" ".join(literal.split()))
