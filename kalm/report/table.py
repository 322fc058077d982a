"""One table, three looks: Markdown for papers and READMEs, HTML for a page, rich for the terminal; and that page.

Cells are plain text. Each look escapes them by its own rules, because instructions, labels and task names come from
users and language models and must be shown, never interpreted.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

EMPTY = "-"
# Underscores inside a word are no emphasis, so names such as clevr_robot stay readable.
_MARKUP = re.compile(r"[\\|`*\[\]]|(?<!\w)_|_(?!\w)")

_STYLE = """
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 0.5em 0; }
th, td { border-bottom: 1px solid #ccc; padding: 0.25em 0.8em; text-align: right; }
th:first-child, td:first-child { text-align: left; }
.note { color: #555; max-width: 60em; }
.missing { background: #fff3cd; padding: 0.5em 1em; }
img { max-width: 100%; }
pre { background: #f4f4f4; padding: 1em; overflow-x: auto; }
"""


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
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>\n" for row in rows)
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


def html_page(
    title: str, tables: Sequence[Table], plots: Sequence[Path], missing: Sequence[str], provenance: Sequence[str]
) -> str:
    """One HTML file with tables and plots inside, to open, keep or send without the folder around it.

    Every piece of text is escaped; there are no scripts and nothing is loaded from elsewhere. ``plots`` are PNG files,
    ``missing`` says in sentences what the report lacks, ``provenance`` how the numbers were made.
    """
    gaps = "".join(f"<li>{html.escape(sentence)}</li>\n" for sentence in missing)
    parts = [
        f"<h1>{html.escape(title)}</h1>\n",
        f"<div class='missing'><b>Missing</b><ul>\n{gaps}</ul></div>\n" if missing else "",
        *(table.to_html() for table in tables),
        *(_image(path) for path in plots),
        f"<h2>How these numbers were made</h2>\n<pre>{html.escape(chr(10).join(provenance))}</pre>\n",
    ]
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "".join(parts)
        + "</body>\n</html>\n"
    )


def _image(path: Path) -> str:
    encoded = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"<p><img alt='{html.escape(path.stem.replace('_', ' '))}' src='data:image/png;base64,{encoded}'></p>\n"
