"""Tables are read back whatever the length of their cells."""

from __future__ import annotations

import csv
from pathlib import Path

from medtrain.run.csvfile import read_table


def test_cells_may_be_longer_than_csv_reads_by_default(tmp_path: Path) -> None:
    csv.field_size_limit(131072)
    path = tmp_path / "cases.csv"
    path.write_text(f"case_id,scores\na,{'0.5: ' * 40_000}\nb,\n", encoding="utf-8")
    assert [(row["case_id"], len(row["scores"])) for row in read_table(path)] == [("a", 200_000), ("b", 0)]
