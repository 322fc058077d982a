"""Tables show text, whatever it holds (reliability row X9)."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kalm.report.table import Table, escape_markdown, html_page

EVIL = "<script>alert('x')</script> | `a` *b* [red]c[/red]"


def test_markdown_layout():
    """Header, alignment, rows, note."""
    table = Table("Success", ("policy", "easy"), (("BC", "50.0"),), note="Percent.")
    assert table.to_markdown() == "## Success\n\n| policy | easy |\n| :-- | --: |\n| BC | 50.0 |\n\nPercent.\n"


def test_markup_in_a_cell_is_escaped_in_markdown():
    """The bar would start a new column, the tag would run in a viewer that passes HTML through."""
    (row,) = [line for line in Table("t", ("a",), ((EVIL,),)).to_markdown().splitlines() if "alert" in line]
    assert "<script>" not in row
    assert "&lt;script>" in row
    assert row.count(" | ") == 0
    assert r"\| \`a\` \*b\* \[red\]c" in row


def test_names_stay_readable_in_markdown():
    """An underscore inside a word is no markup, one at its edge is."""
    assert escape_markdown("clevr_robot _x_ > 85") == r"clevr_robot \_x\_ > 85"


def test_a_line_break_in_a_cell_does_not_break_the_row():
    """One row stays one line."""
    assert "| a b |" in Table("t", ("h",), (("a\nb",),)).to_markdown()


def test_markup_is_escaped_everywhere_on_the_page():
    """Title, header, cell, note, what is missing and provenance all hold the same attack."""
    table = Table(EVIL, (EVIL,), ((EVIL,),), note=EVIL)
    page = html_page(EVIL, [table], [], missing=[EVIL], provenance=[EVIL])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 8  # the page's title appears twice: in the tab and as a heading


def test_terminal_markup_is_shown_not_interpreted():
    """Square brackets are rich's markup."""
    console = Console(file=io.StringIO(), width=200)
    console.print(Table("t", ("h",), ((EVIL,),)).to_rich())
    assert "[red]c[/red]" in console.file.getvalue()


def test_ragged_rows_are_refused():
    """A missing cell would shift numbers under another split."""
    with pytest.raises(ValueError, match="2 columns; this row has 1"):
        Table("t", ("a", "b"), (("only",),))


def test_plots_are_inside_the_page(tmp_path):
    """The three bytes 1, 2, 3 are AQID in base64."""
    (tmp_path / "success.png").write_bytes(b"\x01\x02\x03")
    page = html_page("t", [], [tmp_path / "success.png"], [], [])
    assert "src='data:image/png;base64,AQID'" in page
