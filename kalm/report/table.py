"""One table, three looks: Markdown for papers and READMEs, HTML for the page, rich for the terminal.

Cells are plain text. Each look escapes them by its own rules, because instructions, labels and task names come from
users and language models and must be shown, never interpreted.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

# Underscores inside a word are no emphasis, so names such as clevr_robot stay readable.
_MARKUP = re.compile(r"[\\|`*\[\]]|(?<!\w)_|_(?!\w)")


@dataclass(frozen=True)
class Table:
    """A titled table of text.

    Attributes:
        title: Heading above the table.
        header: Column names.
        rows: Cells, one tuple a row, each as long as the header.
        note: What a reader must know to read the numbers; printed below.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse ragged rows: a shifted column would put numbers under the wrong split."""
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"table {self.title!r} has {len(self.header)} columns; this row has {len(row)}: {row}")

    def to_markdown(self) -> str:
        """The table under a second-level heading, numbers right-aligned."""
        aligned = [":--", *["--:"] * (len(self.header) - 1)]
        lines = [_markdown_row(self.header), "| " + " | ".join(aligned) + " |", *map(_markdown_row, self.rows)]
        note = f"\n\n{escape_markdown(self.note)}" if self.note else ""
        return f"## {escape_markdown(self.title)}\n\n" + "\n".join(lines) + note + "\n"

    def to_html(self) -> str:
        """The same as an HTML fragment."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in self.rows
        )
        note = f"<p class='note'>{html.escape(self.note)}</p>\n" if self.note else ""
        return (
            f"<h2>{html.escape(self.title)}</h2>\n<table>\n<thead><tr>{head}</tr></thead>\n"
            f"<tbody>\n{body}</tbody>\n</table>\n{note}"
        )

    def to_rich(self) -> RichTable:
        """The same for the terminal, without the note; what a number has in brackets goes below it to save width.

        No cell is ever shortened: a digit that is cut off is a wrong number.
        """
        table = RichTable(
            title=Text(self.title), box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
        )
        rows = [(first, *(number.replace(" (", "\n(") for number in numbers)) for first, *numbers in self.rows]
        for column, name in enumerate(self.header):
            width = max(len(line) for row in [self.header, *rows] for line in row[column].split("\n"))
            table.add_column(Text(name), justify="left" if column == 0 else "right", no_wrap=True, min_width=width)
        for row in rows:
            table.add_row(*map(Text, row))
        return table


def escape_markdown(text: str) -> str:
    """Neutralise what would end a cell or start markup; Markdown passes HTML through, so tags are escaped as well."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKUP.sub(r"\\\g<0>", text)


def _markdown_row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(map(escape_markdown, cells)) + " |"
