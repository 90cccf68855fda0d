from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from medtrain.data.cells import parse_number, read_cells
from medtrain.errors import DataError, MissingExtraError, UsageError


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found_in_the_header(tmp_path: Path, separator: str) -> None:
    text = separator.join(["id", "note", "x"]) + "\r\n" + separator.join(["a", '"1,2;3"', " 7 "]) + "\r\n\r\n"
    cells = read_cells(written(tmp_path / "t.csv", text))
    assert cells.header == ("id", "note", "x")
    assert cells.rows == [["a", "1,2;3", "7"]]
    assert cells.lines == [2]


def test_a_given_separator_and_tsv(tmp_path: Path) -> None:
    path = written(tmp_path / "t.tsv", "a,b\tc\n1,2\t3\n")
    assert read_cells(path).header == ("a,b", "c")
    assert read_cells(path, separator=",").header == ("a", "b\tc")
    with pytest.raises(UsageError, match="one character"):
        read_cells(path, separator=", ")


def test_cells_of_excel(tmp_path: Path) -> None:
    text = '\ufeffname,note\n"x","two\nlines"\n,\nNaN,n/a\ny, NULL \n'
    cells = read_cells(written(tmp_path / "t.csv", text))
    assert cells.header == ("name", "note")
    assert cells.rows == [["x", "two\nlines"], ["", ""], ["y", ""]]
    assert cells.lines == [3, 5, 6]  # a row of empty cells is none; a missing value is a row
    assert cells.column("name") == ["x", "", "y"]
    assert cells.places([3]) == "line 3"
    assert cells.places([1, 2, 3, 4, 5, 6, 7]) == "lines 1, 2, 3, 4, 5 and 2 more"


def test_other_encodings(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "id,name\n1,Zo\u00eb\n", "latin-1")
    with pytest.raises(DataError, match="is not text in utf-8") as error:
        read_cells(path)
    assert "latin-1" in str(error.value.problems[0].hint)
    assert read_cells(path, encoding="latin-1").column("name") == ["Zo\u00eb"]


def test_uneven_rows_and_repeated_columns_are_listed_at_once(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "a,b,a\n1,2,3\n1,2\n1,2,3,4\n")
    with pytest.raises(DataError) as error:
        read_cells(path)
    assert [(problem.message, problem.hint) for problem in error.value.problems] == [
        ("has several columns named 'a'", None),
        ("line 3 has 2 cells, the header has 3", None),
        ("line 4 has 4 cells, the header has 3", "quote cells that hold ','"),
    ]


def test_many_uneven_rows_are_one_problem(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "a\n" + "1,2\n" * 60 + "1,2,3\n")
    with pytest.raises(DataError) as error:
        read_cells(path, separator=",")
    assert [problem.message for problem in error.value.problems] == [
        "lines 2, 3, 4, 5, 6 and 55 more have 2 cells, the header has 1",
        "line 62 has 3 cells, the header has 1",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("dataset.json", json.dumps({"name": "x", "training": ["a"] * 60}, indent=1), "is JSON", "data=msd data.root="),
        ("rows.json", '[{"file": "a.png"}]', "is JSON", "CSV UTF-8"),
        ("scan.nii.gz", gzip.compress(b"scan"), "gzip", "the table that lists"),
        ("table.xlsx", b"PK\x03\x04" + bytes(99), "an Excel workbook", "CSV UTF-8"),
        ("table.csv", b"\xd0\xcf\x11\xe0" + bytes(99), "an old Excel workbook", "CSV UTF-8"),
        ("table.csv", b"PAR1" + bytes(99), "is a Parquet file", ".parquet"),
        ("0.csv", b"\x89PNG\r\n" + bytes(99), "is an image", "the table that lists"),
        ("table.csv", "a,b\n1,2\n".encode("utf-16-le"), "zero bytes", "utf-16-le"),
        ("table.csv", b"", "is empty", ""),
    ],
)
def test_files_mistaken_for_tables_are_told_in_one_sentence(
    tmp_path: Path, name: str, content: str | bytes, message: str, hint: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as error:
        read_cells(path)
    (problem,) = error.value.problems
    assert message in problem.message
    assert hint in (problem.hint or "")


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder, not a table") as error:
        read_cells(tmp_path)
    assert "data.root" in str(error.value.hint)
    written(tmp_path / "t.csv", "a\n1\n")
    with pytest.raises(UsageError) as error:
        read_cells(tmp_path)
    assert error.value.hint == f"did you mean {tmp_path / 't.csv'}?"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_marks_tell_the_encoding(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path / "t.csv", "id;name\n1;Zo\u00eb\n", encoding)
    assert read_cells(path).column("name") == ["Zo\u00eb"]


def test_long_headers_are_cut(tmp_path: Path) -> None:
    cells = read_cells(written(tmp_path / "t.csv", ",".join(["x" * 500, *(f"c{i}" for i in range(99))]) + "\n"))
    message = cells.missing_column("q").message
    assert message.startswith(f"has no column 'q'; it has {'x' * 40}..., c0, c1")
    assert message.endswith("c18 and 80 more")


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        read_cells(written(tmp_path / "e.csv", "\n"))
    with pytest.raises(DataError, match=r"line 2: "):
        read_cells(written(tmp_path / "q.csv", 'a,b\n"x"y,2\n'))
    with pytest.raises(UsageError, match="no such table") as error:
        read_cells(tmp_path / "q.cvs")
    assert error.value.hint == f"did you mean {tmp_path / 'q.csv'}?"
    with pytest.raises(UsageError, match="no such table"):
        read_cells(tmp_path / "nowhere" / "q.csv")


def test_numbers() -> None:
    assert parse_number("1.5e1") == 15
    assert parse_number("1,5", decimal=",") == 1.5
    for text in ("1,5", "inf", "nan", "1_000", "x", ""):
        assert parse_number(text) is None


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow (extra `parquet`) is not installed")
    from pyarrow import parquet

    columns = {"id": ["a", "b"], "grade": [3, None], "age": [1.5, float("nan")], "flag": [True, None]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    cells = read_cells(tmp_path / "t.parquet")
    assert cells.header == ("id", "grade", "age", "flag")
    assert cells.rows == [["a", "3", "1.5", "1"], ["b", "", "", ""]]
    assert cells.places([1, 2]) == "rows 1, 2"
    written(tmp_path / "no.parquet", "id,grade\n")
    with pytest.raises(DataError, match="not a Parquet file"):
        read_cells(tmp_path / "no.parquet")


def test_the_extra_for_parquet_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"reading t\.parquet needs the package pyarrow") as error:
        read_cells(written(tmp_path / "t.parquet", "PAR1"))
    assert error.value.hint == "pip install 'medtrain[parquet]'"
