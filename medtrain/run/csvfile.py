"""Read back the tables that medtrain writes."""

from __future__ import annotations

import csv
from pathlib import Path

_LONGEST_CELL = 2**31 - 1
"""Characters; the default of 131072 is less than some thousand candidates of a case take."""


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table as text.

    Args:
        path: Of a file in UTF-8 with a header.

    Raises:
        FileNotFoundError: It is not there.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
