"""Partly annotated data: which outputs a case tells something about."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtrain.data.io.description import parse_json
from medtrain.errors import DataError, Problem
from medtrain.registry import closest

Annotated = dict[str, tuple[bool, ...]]
"""Case id -> whether each output was annotated; cases that are missing were in full."""

_COLUMNS = ("case_id", "annotated")


def read_annotated(
    path: Path,
    *,
    case_ids: Sequence[str],
    class_names: Sequence[str],
    regions: Mapping[str, Sequence[int]] | None,
) -> Annotated:
    """Read which classes or regions were annotated in which cases.

    Of regions one was annotated if its name is listed, or all of its classes are: whoever annotated a whole tumour only
    said nothing of its core.

    Args:
        path: JSON {"case": ["class", ...]}, or CSV with the columns case_id and annotated (names separated by `;`).
        case_ids: The cases of the data set.
        class_names: Names by class index, background first; the background is always annotated.
        regions: Class indices by region; None where outputs are classes.

    Raises:
        DataError: The file is missing or not of this form, or names unknown cases or classes; all of it at once.
    """
    listed = _read_csv(path) if path.suffix.lower() == ".csv" else _read_json(path)
    known = [*class_names[1:], *(name for name in regions or {} if name not in class_names)]
    problems: list[Problem] = []
    for case_id, names in listed.items():
        if case_id not in set(case_ids):
            near = closest(case_id, case_ids)
            hint = f"did you mean `{near}`?" if near else None
            problems.append(Problem(where=str(path), message=f"there is no case {case_id!r}", hint=hint))
        for name in names:
            if name not in known:
                near = closest(name, known)
                message = f"{case_id}: unknown class `{name}`; known: {', '.join(known)}"
                hint = f"did you mean `{near}`?" if near else None
                problems.append(Problem(where=str(path), message=message, hint=hint))
    if problems:
        raise DataError(problems, heading=f"data.annotated={path} does not fit the data:")
    if regions is None:
        return {case: (True, *(name in names for name in class_names[1:])) for case, names in listed.items()}
    return {
        case: tuple(
            name in names or all(class_names[index] in names for index in members) for name, members in regions.items()
        )
        for case, names in listed.items()
    }


def _read_json(path: Path) -> dict[str, list[str]]:
    content: Any = parse_json(path)
    fits = isinstance(content, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in content.values()
    )
    if not fits:
        raise DataError([Problem(where=str(path), message='expected {"case": ["class", ...], ...}')])
    return content


def _read_csv(path: Path) -> dict[str, list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError([Problem(where=str(path), message="no such file")]) from None
    rows = csv.DictReader(io.StringIO(text))
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        message = f"lacks the column {' and '.join(missing)}; expected {','.join(_COLUMNS)}"
        raise DataError([Problem(where=str(path), message=message)])
    found: dict[str, list[str]] = {}
    for row in rows:
        case_id, names = (row["case_id"] or "").strip(), row["annotated"] or ""
        if case_id in found:
            raise DataError([Problem(where=str(path), message=f"lists {case_id!r} twice")])
        found[case_id] = [name.strip() for name in names.split(";") if name.strip()]
    return found
