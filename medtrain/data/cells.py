"""The cells of a table file as text: CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from medtrain.data.splits import some
from medtrain.errors import DataError, MissingExtraError, Problem, UsageError
from medtrain.registry import closest

MISSING = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan", "null"})
"""What an empty cell may look like, in lower case."""

_SEPARATORS = (",", ";", "\t", "|")
_SHOWN = 5
_SHOWN_COLUMNS, _SHOWN_SIGNS = 20, 40

_AS_CSV = "save it as CSV UTF-8 in the program that wrote it, and name that file"
_NO_TEXT = (
    (b"PK\x03\x04", "is an Excel workbook or another packed file, not a text table", _AS_CSV),
    (b"\xd0\xcf\x11\xe0", "is an old Excel workbook, not a text table", _AS_CSV),
    (b"PAR1", "is a Parquet file", "let its name end in .parquet"),
    (b"\x1f\x8b", "is packed with gzip (a scan?), not a text table", "name the table that lists the files"),
    (b"\x89PNG", "is an image, not a table", "name the table that lists the images"),
    (b"\xff\xd8\xff", "is an image, not a table", "name the table that lists the images"),
)
"""How files that are often mistaken for tables begin, what they are, and what to do."""

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_DEFAULT = "utf-8-sig"


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
        return _places(self.unit, lines)

    def missing_column(self, name: str) -> Problem:
        """Say that there is no such column, what there is, and which name is near."""
        other = next((mark for mark in _SEPARATORS if mark in self.header[0]), None) if len(self.header) == 1 else None
        if other:
            hint: str | None = f"the header holds {other!r}: set the separator to it"
        else:
            near = closest(name, self.header)
            hint = f"did you mean {near!r}?" if near else None
        shown = [each if len(each) <= _SHOWN_SIGNS else f"{each[:_SHOWN_SIGNS]}..." for each in self.header]
        columns = some(shown, _SHOWN_COLUMNS)
        return Problem(where=str(self.path), message=f"has no column {name!r}; it has {columns}", hint=hint)


def read_cells(path: Path, *, separator: str | None = None, encoding: str = _DEFAULT) -> Cells:
    """Read a table.

    Args:
        path: `.parquet` (or `.pq`), otherwise text with a header line; cells may be quoted.
        separator: Of a text file. None for tab in `.tsv`, otherwise whichever of , ; tab | the header holds most of.
        encoding: Of a text file. By default UTF-8, or UTF-16 where the file begins with its mark.

    Raises:
        UsageError: There is no such file, or it is a folder.
        DataError: Unreadable, no table, no header, columns of one name, rows that are too long or too short; all of it
            at once.
        MissingExtraError: A Parquet file, and pyarrow is not installed.
    """
    if path.is_dir():
        tables = sorted(child.name for child in path.iterdir() if child.suffix.lower() in (".csv", ".tsv", ".parquet"))
        hint = f"did you mean {path / tables[0]}?" if tables else "name the table itself; a folder is for data.root"
        raise UsageError(f"{path} is a folder, not a table", hint=hint)
    if not path.is_file():
        beside = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        near = closest(path.name, beside)
        where = "set data.root to the folder of the data set, or data.path to the table"
        raise UsageError(f"no such table: {path}", hint=f"did you mean {path.parent / near}?" if near else where)
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    if separator is not None and len(separator) != 1:
        raise UsageError(f"the separator must be one character, got {separator!r}")
    return _parse(path, _read_text(path, encoding), separator)


def _places(unit: str, lines: Sequence[int]) -> str:
    return f"{unit if len(lines) == 1 else unit + 's'} {some([str(line) for line in lines], _SHOWN)}"


def parse_number(text: str, *, decimal: str = ".") -> float | None:
    """A finite number, or None where the text is not one."""
    try:
        number = float(text.replace(",", ".") if decimal == "," else text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def _read_text(path: Path, encoding: str) -> str:
    """The text of a table, or what the file is instead."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _error(path, f"cannot be read: {error.strerror}") from None
    for mark, message, hint in _NO_TEXT:
        if content.startswith(mark):
            raise _error(path, message, hint)
    if encoding == _DEFAULT and content.startswith(_UTF_16):
        encoding = "utf-16"
    try:
        text = content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except (UnicodeDecodeError, LookupError):
        hint = "save it as UTF-8, or name its encoding, such as latin-1"
        raise _error(path, f"is not text in {encoding}", hint) from None
    if "\0" in text:
        raise _error(path, "holds zero bytes, so it is no text", "if it is UTF-16 without a mark: encoding=utf-16-le")
    if text.lstrip()[:1] in ("{", "[") and _is_json(text):
        place = path.absolute().parent
        hint = f"is this a folder of scans? data=msd data.root={place}" if path.name == "dataset.json" else _AS_CSV
        raise _error(path, "is JSON, not a table", hint)
    return text


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


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
    uneven: dict[int, list[int]] = {}
    for line, row in found[1:]:
        if len(row) != len(header):
            uneven.setdefault(len(row), []).append(line)
    for count, lines in uneven.items():
        has = "has" if len(lines) == 1 else "have"
        message = f"{_places('line', lines)} {has} {count} cells, the header has {len(header)}"
        hint = f"quote cells that hold {separator!r}" if count > len(header) else None
        problems.append(Problem(where=str(path), message=message, hint=hint))
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
