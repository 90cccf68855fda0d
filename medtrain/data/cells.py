"""The cells of a table file as text: CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from medtrain.errors import DataError, MissingExtraError, Problem, UsageError
from medtrain.registry import closest

MISSING = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan", "null"})
"""What an empty cell may look like, in lower case."""

_SEPARATORS = (",", ";", "\t", "|")
_SHOWN = 5


@dataclass(frozen=True)
class Cells:
    """A table of text.

    Args:
        path: The file.
        header: Column names, each once.
        rows: One list per row, as long as the header; surrounding blanks are gone, empty where a value is missing.
        lines: Where each row is, for people: the line of a text file (the header is line 1), or the row of a Parquet
            file (the first is row 1).
        unit: "line" or "row".
    """

    path: Path
    header: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]
    unit: str

    def column(self, name: str) -> list[str]:
        """All values of a column."""
        position = self.header.index(name)
        return [row[position] for row in self.rows]

    def places(self, lines: Sequence[int]) -> str:
        """Lines in words: `line 3`, or `lines 3, 9 and 4 more`."""
        rest = len(lines) - _SHOWN
        shown = ", ".join(str(line) for line in lines[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
        return f"{self.unit} {shown}" if len(lines) == 1 else f"{self.unit}s {shown}"

    def missing_column(self, name: str) -> Problem:
        """Say that there is no such column, what there is, and which name is near."""
        other = next((mark for mark in _SEPARATORS if mark in self.header[0]), None) if len(self.header) == 1 else None
        if other:
            hint: str | None = f"the header holds {other!r}: set the separator to it"
        else:
            near = closest(name, self.header)
            hint = f"did you mean {near!r}?" if near else None
        return Problem(
            where=str(self.path), message=f"has no column {name!r}; it has {', '.join(self.header)}", hint=hint
        )


def read_cells(path: Path, *, separator: str | None = None, encoding: str = "utf-8-sig") -> Cells:
    """Read a table.

    Args:
        path: `.parquet` (or `.pq`), otherwise text with a header line; cells may be quoted.
        separator: Of a text file. None for tab in `.tsv`, otherwise whichever of , ; tab | the header holds most of.
        encoding: Of a text file.

    Raises:
        UsageError: There is no such file.
        DataError: Unreadable, no header, columns of one name, rows that are too long or too short; all at once.
        MissingExtraError: A Parquet file, and pyarrow is not installed.
    """
    if not path.is_file():
        beside = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        near = closest(path.name, beside)
        where = "set data.root to the folder of the data set, or data.path to the table"
        raise UsageError(f"no such table: {path}", hint=f"did you mean {path.parent / near}?" if near else where)
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    if separator is not None and len(separator) != 1:
        raise UsageError(f"the separator must be one character, got {separator!r}")
    try:
        text = path.read_text(encoding=encoding)
    except UnicodeDecodeError:
        hint = "save it as UTF-8, or name its encoding, such as latin-1"
        raise _error(path, f"is not text in {encoding}", hint) from None
    except OSError as error:
        raise _error(path, f"cannot be read: {error.strerror}") from None
    return _parse(path, text, separator)


def parse_number(text: str, *, decimal: str = ".") -> float | None:
    """A finite number, or None where the text is not one."""
    try:
        number = float(text.replace(",", ".") if decimal == "," else text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def _parse(path: Path, text: str, separator: str | None) -> Cells:
    first = text.lstrip("\r\n").partition("\n")[0]
    if not first.strip():
        raise _error(path, "is empty: expected a line with the names of the columns")
    if separator is None:
        counts = [(first.count(mark), -rank, mark) for rank, mark in enumerate(_SEPARATORS)]
        separator = "\t" if path.suffix.lower() == ".tsv" else max(counts)[2]
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        found = list(_rows(reader))
    except csv.Error as error:
        raise _error(path, f"line {reader.line_num}: {error}") from None
    header = tuple(found[0][1])
    problems = _check_header(path, header)
    uneven = [(line, row) for line, row in found[1:] if len(row) != len(header)]
    for line, row in uneven:
        problems.append(
            Problem(
                where=str(path),
                message=f"line {line} has {len(row)} cells, the header has {len(header)}",
                hint=f"quote cells that hold {separator!r}" if len(row) > len(header) else None,
            )
        )
    if problems:
        raise DataError(problems, heading=f"{path} cannot be read as a table:")
    rows = [["" if cell.lower() in MISSING else cell for cell in row] for _, row in found[1:]]
    return Cells(path, header, rows, [line for line, _ in found[1:]], "line")


def _rows(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows that hold something, with the line each ends on."""
    for row in reader:
        cells = [cell.strip() for cell in row]
        if any(cells):
            yield reader.line_num, cells


def _check_header(path: Path, header: Sequence[str]) -> list[Problem]:
    repeated = [name for name, count in Counter(header).items() if count > 1 and name]
    return [Problem(where=str(path), message=f"has several columns named {name!r}") for name in repeated]


def _read_parquet(path: Path) -> Cells:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", extra="parquet", purpose=f"reading {path.name}") from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise _error(path, f"not a Parquet file, or damaged: {' '.join(str(error).split())}") from None
    header = tuple(str(name) for name in table.column_names)
    problems = _check_header(path, header)
    if problems:
        raise DataError(problems)
    columns = [[_text(value) for value in column.to_pylist()] for column in table.columns]
    rows = [list(row) for row in zip(*columns)]
    return Cells(path, header, rows, list(range(1, len(rows) + 1)), "row")


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    text = str(value).strip()
    return "" if text.lower() in MISSING else text


def _error(path: Path, message: str, hint: str | None = None) -> DataError:
    return DataError([Problem(where=str(path), message=message, hint=hint)])
