"""Boxes and points from the rows of a table: numbers in columns of their own, or lists in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medtrain.data.cells import Cells
from medtrain.data.columns import TableColumns
from medtrain.data.marks import Box, Mark, Marks, Point, parse_marks

Wrong = dict[str, list[int]]
"""What is wrong, with the rows."""


def read_marks(
    cells: Cells, columns: TableColumns, numbers: Callable[[str], Sequence[float | None]]
) -> tuple[list[Mark | None], Wrong]:
    """The boxes or points of every row; None where nobody drew any.

    Args:
        cells: The table.
        columns: Names their columns.
        numbers: Reads a column of numbers, and reports those that are none.
    """
    box, point = columns.annotation_box, columns.annotation_point
    names = box or point or ()
    if len(names) == 1:
        return _listed(cells.column(names[0]), names[0], Box if box else Point)
    values = [numbers(name) for name in names]
    texts = [cells.column(name) for name in names]
    found: list[Mark | None] = []
    wrong: Wrong = {}
    for row in range(len(cells.rows)):
        given = [column[row] for column in values]
        mark: Mark | None = None
        if box is not None and all(value is not None for value in given):
            mark = Box(*given)  # type: ignore[arg-type]
            if not mark.is_sound:
                wrong.setdefault(f"{', '.join(names)} are no box: left < right, top < bottom", []).append(row)
        elif point is not None and given[0] is not None and given[1] is not None:
            mark = Point(given[0], given[1], given[2] if len(given) > 2 else None)
            if not mark.is_sound:
                wrong.setdefault(f"column {names[2]!r}: a radius must be above 0", []).append(row)
        elif any(column[row] for column in texts):
            wrong.setdefault(f"{', '.join(names)} are filled in part", []).append(row)
        found.append(mark)
    return found, wrong


def _listed(texts: Sequence[str], name: str, kind: type[Box | Point]) -> tuple[list[Mark | None], Wrong]:
    found: list[Mark | None] = []
    wrong: list[int] = []
    for row, text in enumerate(texts):
        mark: Mark | None = None
        try:
            mark = parse_marks(text, kind) if text else None
        except ValueError:
            wrong.append(row)
        each = mark.marks if isinstance(mark, Marks) else (mark,)
        if not all(one is None or one.is_sound for one in each):
            wrong.append(row)
        found.append(mark)
    form = "[[left, top, right, bottom], ...], with left < right and top < bottom"
    form = form if kind is Box else "[[x, y], [x, y, radius], ...], with a radius above 0"
    return found, {f"column {name!r} must hold lists like {form}": wrong} if wrong else {}
