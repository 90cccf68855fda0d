"""Inspections remove what an inspection wrote, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from medtrain.data.inspect_files import INSPECTED, claim_folder, clear_folder
from medtrain.errors import UsageError


@pytest.mark.parametrize("name", ["cases.csv", "outliers.csv", "fingerprint.json", "sheet_of_mine.png"])
def test_a_folder_with_files_of_the_user_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=f"{name}, which no inspection"):
        claim_folder(tmp_path, "Set", tmp_path / "set")
    assert not (tmp_path / INSPECTED).exists()
    clear_folder(tmp_path)  # not marked
    assert (tmp_path / name).read_text() == "mine"


def test_an_earlier_inspection_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")  # of no name that is written
    out = claim_folder(tmp_path, "Set", tmp_path / "set")
    for name in ("cases.csv", "sheet_09.png"):
        (out / name).write_text("earlier")
    assert claim_folder(tmp_path, "Set", tmp_path / "set") == out
    clear_folder(out)
    assert sorted(path.name for path in out.iterdir()) == [INSPECTED, "notes.txt"]


def test_the_table_is_not_written_over(in_tmp: Path) -> None:
    table = Path("cases.csv")
    claim_folder(Path(), "Set", in_tmp, table)  # marked before the table was there
    table.write_text("file,class")
    with pytest.raises(UsageError, match=r"cases\.csv is the table"):
        claim_folder(Path(), "Set", in_tmp, table)
    assert claim_folder(Path("out"), "Set", in_tmp, table) == Path("out")
