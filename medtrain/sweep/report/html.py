"""The few pieces of HTML that a report is made of: one file, no scripts, readable in light and dark."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; --text: #1c2733; --faint: #5c6873; --line: #d8dee4; --back: #ffffff; --card: #f4f7f9;
  --accent: #1f4e79; --good: #2e7d4f; --bad: #a8323e; }
@media (prefers-color-scheme: dark) { :root { --text: #e3e8ed; --faint: #9aa7b3; --line: #36414c; --back: #14191f;
  --card: #1d242c; --accent: #86b8e6; --good: #7cc79a; --bad: #ec8f98; } }
body { margin: 0 auto; max-width: 78rem; padding: 1.5rem 1.25rem 4rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { margin: .35rem 0; max-width: 52rem; }
.faint { color: var(--faint); } .good { color: var(--good); } .bad { color: var(--bad); }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.1rem 0; }
.tile { background: var(--card); border-radius: 8px; padding: .55rem .95rem; min-width: 7.5rem; }
.tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { text-align: left; padding: .26rem .8rem .26rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--faint); white-space: nowrap; } td.number { text-align: right; white-space: nowrap; }
th.number { text-align: right; } td code { overflow-wrap: anywhere; } tr.best td { font-weight: 600; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .92em; }
pre { background: var(--card); border-radius: 8px; padding: .7rem .95rem; overflow-x: auto; font-size: .86rem;
  font-family: ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.dense td { white-space: nowrap; }
figure { margin: 1.6rem 0; } img { max-width: 100%; height: auto; background: #ffffff; border-radius: 8px;
  border: 1px solid var(--line); box-sizing: border-box; } figcaption { color: var(--faint); max-width: 52rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
"""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: What it says.
        is_number: Aligned to the right.
        is_code: In the fixed-width font.
        tone: `good`, `bad` or `faint` colours it.
    """

    text: str
    is_number: bool = False
    is_code: bool = False
    tone: str = ""


def escape(text: str) -> str:
    """Plain text as HTML."""
    return html.escape(text, quote=True)


def page(title: str, parts: Iterable[str]) -> str:
    """A whole file.

    Args:
        title: For the browser's tab.
        parts: HTML; empty ones are left out.
    """
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, tone: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_class(tone)}>{escape(text)}</p>"


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    """The most important numbers, large, each with what it is."""
    shown = "".join(f'<div class="tile"><b>{escape(value)}</b>{escape(name)}</div>' for value, name in facts)
    return f'<div class="tiles">{shown}</div>'


def commands(lines: Sequence[str]) -> str:
    """Lines to type."""
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def table(
    header: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, best: int | None = None, dense: bool = False
) -> str:
    """A table; columns of numbers are aligned by their first row.

    Args:
        header: Names of the columns.
        rows: Cells.
        best: Index of a row to stress.
        dense: One line per row, however wide.
    """
    if not rows:
        return ""
    filled = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    head = "".join(
        f"<th{_class('number' if cell.is_number else '')}>{escape(name)}</th>"
        for name, cell in zip(header, filled[0], strict=True)
    )
    lines = [
        f"<tr{_class('best' if index == best else '')}>{''.join(map(_cell, row))}</tr>"
        for index, row in enumerate(filled)
    ]
    return (
        f'<div class="wide{" dense" if dense else ""}"><table>\n<tr>{head}</tr>\n'
        + "\n".join(lines)
        + "\n</table></div>"
    )


def details(summary: str, content: str) -> str:
    """Something that is folded away."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>" if content else ""


def picture(path: Path, title: str, caption: str) -> str:
    """A PNG file inside the page, with its caption."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure id="{escape(path.stem)}">\n<img alt="{escape(title)}" '
        f'src="data:image/png;base64,{data}">\n<figcaption>{escape(caption)}</figcaption></figure>'
    )


def _cell(cell: Cell) -> str:
    text = f"<code>{escape(cell.text)}</code>" if cell.is_code and cell.text else escape(cell.text)
    return f"<td{_class(' '.join(filter(None, ['number' if cell.is_number else '', cell.tone])))}>{text}</td>"


def _class(names: str) -> str:
    return f' class="{escape(names)}"' if names else ""
