"""One HTML file with the tables and the plots inside, to open, keep or send without the folder around it."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from kalm.report.table import Table

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


def html_page(
    title: str, tables: Sequence[Table], plots: Sequence[Path], missing: Sequence[str], provenance: Sequence[str]
) -> str:
    """Build the page. Every piece of text is escaped; there are no scripts and nothing is loaded from elsewhere.

    Args:
        title: Heading of the page.
        tables: In reading order.
        plots: PNG files, embedded after the tables.
        missing: What the report lacks, one sentence each.
        provenance: Lines that say how the numbers were made.
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
