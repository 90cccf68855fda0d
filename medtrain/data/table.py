"""Samples from the rows of a table: images, targets, patients, views and tabular values by column name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from medtrain.data.cells import Cells, parse_number, read_cells
from medtrain.data.columns import FIELD, TableColumns, TargetColumn, check_columns
from medtrain.data.io.description import patient_of
from medtrain.data.io.images import SUFFIXES, image_stem
from medtrain.data.marks import Mark
from medtrain.data.row_marks import read_marks
from medtrain.data.sample import Sample, SampleSet, Target
from medtrain.data.splits import some
from medtrain.errors import DataError, Problem
from medtrain.registry import closest

PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of parts as they are found in tables and folders, and what they are called here."""

_T = TypeVar("_T")
_WHOLE = re.compile(r"-?\d+(\.0*)?")
_MAX_SHOWN_CLASSES = 12
_FEW = 3


class TableError(DataError):
    """Columns, cells or files of a table are wrong; the files that are there can be looked at.

    Args:
        problems: All of them.
        sample_set: The samples as far as they could be told, those with missing files too.
        missing: The files that are not there.
        heading: See `ProblemsError`.
    """

    def __init__(
        self, problems: Sequence[Problem], *, sample_set: SampleSet, missing: Collection[Path], heading: str
    ) -> None:
        super().__init__(problems, heading=heading)
        self.sample_set = sample_set
        self.missing = frozenset(missing)


def read_table(
    path: Path,
    columns: TableColumns,
    *,
    root: Path | None = None,
    separator: str | None = None,
    encoding: str = "utf-8-sig",
    require_files: bool = True,
) -> SampleSet:
    """Read the samples of a table and see that every file they name is there.

    Args:
        path: CSV, TSV or Parquet; see `medtrain.data.cells.read_cells`.
        columns: Which column holds what.
        root: Folder that image paths are below; the table's own if None.
        separator: Of a text file.
        encoding: Of a text file.
        require_files: Whether a file that is not there is an error now, and not when it is read.

    Raises:
        UsageError: No such table, or settings that contradict each other.
        DataError: Everything that is wrong with columns, cells, ids and files, at once; a `TableError` where the table
            has its columns and rows.
    """
    check_columns(columns)
    cells = read_cells(path, separator=separator, encoding=encoding)
    absent = [cells.missing_column(name) for name in columns.names() if name not in cells.header]
    if absent:
        raise DataError(absent, heading=f"{path} lacks {len(absent)} columns:")
    if not cells.rows:
        raise DataError([Problem(where=str(path), message="has a header and no rows")])
    return _Reading(cells, columns, root or path.parent).result(require_files=require_files)


class _Reading:
    """One pass over a table; problems are gathered on the way."""

    def __init__(self, cells: Cells, columns: TableColumns, root: Path) -> None:
        self.cells, self.columns, self.root = cells, columns, root
        self.problems: list[Problem] = []
        self.views: list[str] = []

    def add(self, message: str, hint: str | None = None, where: str | None = None) -> None:
        """Note a problem."""
        self.problems.append(Problem(where=where or str(self.cells.path), message=message, hint=hint))

    def result(self, *, require_files: bool = True) -> SampleSet:
        columns, cells = self.columns, self.cells
        scales = self._scales()
        targets = [self._target(target, scales) for target in columns.targets]
        numeric = [self._numbers(name) for name in columns.numeric]
        categorical = [[value or None for value in cells.column(name)] for name in columns.categorical]
        images = self._images()
        masks = self._paths([cells.column(columns.annotation)]) if columns.annotation else []
        marks = self._marks()
        metadata = [self._described(name) for name in columns.metadata]
        ids = self._ids(images)
        parts = self._parts()
        groups = self._groups(ids)
        rows: dict[str, list[int]] = {}
        for row, sample_id in enumerate(ids):
            rows.setdefault(sample_id, []).append(row)
        joined = bool(columns.view or columns.bag)
        if not joined:
            for sample_id, several in rows.items():
                if len(several) > 1:
                    self.add(f"{self._places(several)} have the same id {sample_id!r}")
                    rows[sample_id] = several[:1]
        view_names = self._view_names()
        samples = []
        for sample_id, several in sorted(rows.items()):
            one = _Joined(self, sample_id, several)
            group = one.value("patient", groups) or sample_id
            samples.append(
                Sample(
                    sample_id=sample_id,
                    images=self._images_of(sample_id, several, images, view_names),
                    targets=tuple(
                        one.value(target.column, values) for target, (_, values) in zip(columns.targets, targets)
                    ),
                    group=group,
                    numeric=tuple(one.value(name, values) for name, values in zip(columns.numeric, numeric)),
                    categorical=tuple(
                        one.value(name, values) for name, values in zip(columns.categorical, categorical)
                    ),
                    part=one.value("part", parts),
                    annotation=masks[several[0]][0] if masks else marks[several[0]],
                    metadata=tuple(one.value(name, values) or "" for name, values in zip(columns.metadata, metadata)),
                )
            )
        missing = self._check_files([*images, *masks]) if require_files else []
        sample_set = SampleSet(
            set_name=cells.path.stem,
            root=self.root,
            samples=tuple(samples),
            targets=tuple(Target(target.column, classes) for target, (classes, _) in zip(columns.targets, targets)),
            view_names=view_names or (columns.images if len(columns.images) > 1 else ()),
            numeric_names=columns.numeric,
            categorical_names=columns.categorical,
            bags=columns.bag is not None,
            metadata_names=columns.metadata,
        )
        if self.problems:
            heading = f"{cells.path} cannot be used as it is:"
            raise TableError(self.problems, sample_set=sample_set, missing=missing, heading=heading)
        return sample_set

    def _places(self, rows: Sequence[int]) -> str:
        return self.cells.places([self.cells.lines[row] for row in rows])

    def _report(self, text: str, column: str | None, values: Sequence[str]) -> None:
        """Say where a required cell is empty."""
        empty = [row for row, value in enumerate(values) if not value]
        if empty:
            self.add(f"{text.format(column)} in {self._places(empty)}")

    def _by_value(self, values: Sequence[str], wrong: Callable[[str], bool]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for row, value in enumerate(values):
            if value and wrong(value):
                found.setdefault(value, []).append(row)
        return found

    def _scales(self) -> dict[str, tuple[str, ...]]:
        """The classes of columns of whole numbers whose classes are not given, by column: one scale for all of them.

        By itself, a zone that nobody graded 0 would have fewer classes than its siblings. Columns of 0 and 1 alone
        are findings rather than grades, and share a scale among themselves.
        """
        values: dict[bool, dict[str, list[str]]] = {True: {}, False: {}}
        for target in self.columns.targets:
            texts = [_whole(text) for text in self.cells.column(target.column) if text]
            if target.kind == "class" and target.classes is target.names is None and all(map(_WHOLE.fullmatch, texts)):
                values[set(texts) <= {"0", "1"}][target.column] = texts
        return {
            column: derive_classes([text for texts in alike.values() for text in texts])
            for alike in values.values()
            for column in alike
        }

    def _target(
        self, target: TargetColumn, scales: Mapping[str, tuple[str, ...]]
    ) -> tuple[tuple[str, ...] | None, list[int | float | None]]:
        texts = self.cells.column(target.column)
        if target.required:
            self._report("column {0!r}: the target is missing", target.column, texts)
        if not any(texts):
            self.add(f"column {target.column!r} is empty: no sample is labelled")
        if target.kind == "number":
            return None, list(self._numbers(target.column, low=target.low, high=target.high))
        texts = [_whole(text) for text in texts]
        classes = (
            tuple(_whole(name) for name in target.classes)
            if target.classes
            else scales.get(target.column) or derive_classes(texts)
        )
        if target.missing is not None:
            missing = _whole(target.missing)
            classes = classes if missing in classes else (*classes, missing)
            texts = [text or missing for text in texts]
        if target.names is not None and len(target.names) != len(classes):
            self.add(f"column {target.column!r} has {len(classes)} classes, but {len(target.names)} names are given")
            return classes, [None] * len(texts)
        index = {name: position for position, name in enumerate(classes)}
        for value, rows in self._by_value(texts, lambda value: value not in index).items():
            near = None if _WHOLE.fullmatch(value) else closest(value, classes)
            self.add(
                f"column {target.column!r}: {value!r} in {self._places(rows)} is none of the classes "
                f"{some(classes, _MAX_SHOWN_CLASSES)}",
                hint=f"did you mean {near!r}?" if near else None,
            )
        return target.names or classes, [index.get(text) for text in texts]

    def _numbers(self, name: str, low: float | None = None, high: float | None = None) -> list[float | None]:
        decimal = self.columns.decimal
        texts = self.cells.column(name)
        numbers = [parse_number(text, decimal=decimal) if text else None for text in texts]
        for value, rows in self._by_value(texts, lambda text: parse_number(text, decimal=decimal) is None).items():
            comma = decimal == "." and parse_number(value, decimal=",") is not None
            self.add(
                f"column {name!r}: {value!r} in {self._places(rows)} is not a number",
                hint="the decimal mark is a comma: set decimal=','" if comma else None,
            )
        for limit, beyond, word in ((low, float.__lt__, "below"), (high, float.__gt__, "above")):
            if limit is not None:
                rows = [
                    row for row, number in enumerate(numbers) if number is not None and beyond(number, float(limit))
                ]
                if rows:
                    shown = f"{numbers[rows[0]]:g} in {self._places(rows)}"
                    self.add(f"column {name!r}: {shown} is {word} {limit:g}")
        return numbers

    def _marks(self) -> list[Mark | None]:
        marks, wrong = read_marks(self.cells, self.columns, self._numbers)
        for message, rows in wrong.items():
            self.add(f"{message} ({self._places(rows)})")
        return marks

    def _described(self, name: str) -> list[str | None]:
        """A column that only tells of samples; numbers with a decimal point."""
        decimal = self.columns.decimal
        texts = [text or None for text in self.cells.column(name)]
        if decimal == ".":
            return texts
        numbers = [None if text is None else parse_number(text, decimal=decimal) for text in texts]
        return [text if number is None else f"{number:.12g}" for text, number in zip(texts, numbers)]

    def _images(self) -> list[list[Path | None]]:
        """Paths by row; None where the cell is empty."""
        columns, cells = self.columns, self.cells
        if columns.image_pattern is None:
            return self._paths([cells.column(name) for name in columns.images])
        fields = {name: cells.column(name) for name in FIELD.findall(columns.image_pattern)}
        return self._paths([[self._fill(row, fields) for row in range(len(cells.rows))]])

    def _paths(self, texts: Sequence[Sequence[str]]) -> list[list[Path | None]]:
        """From columns of cells to rows of paths."""
        folder, suffix = self.root / self.columns.image_folder, self.columns.image_suffix
        return [
            [
                (folder / (text if text.lower().endswith(suffix.lower()) else text + suffix)) if text else None
                for text in row
            ]
            for row in zip(*texts)
        ] or [[] for _ in self.cells.rows]

    def _fill(self, row: int, fields: dict[str, list[str]]) -> str:
        assert self.columns.image_pattern is not None
        values = {name: column[row] for name, column in fields.items()}
        if not all(values.values()):
            return ""
        return FIELD.sub(lambda match: values[match[1]], self.columns.image_pattern)

    def _ids(self, images: list[list[Path | None]]) -> list[str]:
        columns, cells = self.columns, self.cells
        named = columns.bag or columns.sample_id
        if named:
            ids = cells.column(named)
            self._report("column {0!r}: the id is missing", named, ids)
            return ids
        prefix = f"{self.root / columns.image_folder}{os.sep}"
        ids = []
        for row, paths in enumerate(images):
            first = next((path for path in paths if path is not None), None)
            place = f"{cells.unit}_{cells.lines[row]}"
            ids.append(place if first is None else image_stem(str(first).removeprefix(prefix).replace(os.sep, "/")))
        return ids

    def _groups(self, ids: list[str]) -> list[str]:
        """Patients by row; empty where each sample is one."""
        name, pattern = self.columns.group, self.columns.group_pattern
        groups = ids if name is None else self.cells.column(name)
        if name is not None:
            self._report("column {0!r}: the patient is missing", name, groups)
        if pattern is not None:
            found = patient_of([group for group in groups if group], pattern)
            return [found.get(group, "") for group in groups]
        return groups if name is not None else [""] * len(ids)

    def _parts(self) -> list[str | None]:
        name = self.columns.part
        if name is None:
            return [None] * len(self.cells.rows)
        texts = [text.lower() for text in self.cells.column(name)]
        self._report("column {0!r}: the part is missing", name, texts)
        for value, rows in self._by_value(texts, lambda value: value not in PARTS).items():
            self.add(f"column {name!r}: {value!r} in {self._places(rows)} is none of train, val, test")
        return [PARTS.get(text) for text in texts]

    def _view_names(self) -> tuple[str, ...]:
        name = self.columns.view
        if name is None:
            return ()
        texts = self.cells.column(name)
        self._report("column {0!r}: the view is missing", name, texts)
        self.views = texts
        allowed = self.columns.views or tuple(sorted({text for text in texts if text}))
        for value, rows in self._by_value(texts, lambda value: value not in allowed).items():
            near = closest(value, allowed)
            self.add(
                f"column {name!r}: {value!r} in {self._places(rows)} is none of the views {', '.join(allowed)}",
                hint=f"did you mean {near!r}?" if near else None,
            )
        return allowed

    def _images_of(
        self, sample_id: str, rows: list[int], images: list[list[Path | None]], view_names: tuple[str, ...]
    ) -> tuple[Path | None, ...]:
        found: list[Path | None]
        if self.columns.view is None:
            found = [path for row in rows for path in images[row]]
            if self.columns.bag:
                found = [path for path in found if path is not None]
        else:
            by_view: dict[str, Path | None] = {}
            for row in rows:
                if self.views[row] in by_view:
                    self.add(f"{self._places([row])}: {sample_id!r} has the view {self.views[row]!r} twice")
                by_view[self.views[row]] = images[row][0] if images[row] else None
            found = [by_view.get(name) for name in view_names]
        wanted = bool(self.columns.images or self.columns.image_pattern)
        if wanted and not self.columns.missing_images and not any(path is not None for path in found):
            self.add(f"{self._places(rows)}: {sample_id!r} has no image")
        return tuple(found)

    def _check_files(self, images: list[list[Path | None]]) -> list[Path]:
        """The files that are not there; if none is, that is one problem."""
        places: dict[Path, list[int]] = {}
        for place, paths in enumerate(images):
            for path in paths:
                if path is not None:
                    places.setdefault(path, []).append(place % len(self.cells.rows))
        missing = [path for path in places if not path.exists()]  # a folder may hold a series
        told = {path: str(path).removeprefix(f"{self.root}{os.sep}") for path in missing}
        folders: dict[Path, dict[str, str]] = {}
        hints = {path: _other_suffix(path, folders) for path in missing}
        if len(missing) == len(places) and len(missing) > _FEW:
            shown = ", ".join(list(told.values())[:_FEW])
            message = f"holds none of the {len(missing)} files that the table names, such as {shown}"
            hint = next(filter(None, hints.values()), "set data.root to the folder that these names are below")
            self.add(message, hint, where=str(self.root))
            return missing
        for path in missing:
            self.add(f"no such file ({self._places(places[path])})", hints[path], where=told[path])
        return missing


class _Joined:
    """The rows of one sample, which must agree."""

    def __init__(self, reading: _Reading, sample_id: str, rows: list[int]) -> None:
        self.reading, self.sample_id, self.rows = reading, sample_id, rows

    def value(self, column: str, values: Sequence[_T | None]) -> _T | None:
        """What the rows say, empty cells aside."""
        first, *others = self.rows
        found = values[first]
        for row in others:
            if found is None or found == "":
                found = values[row]
            elif values[row] not in (None, "", found):
                reading = self.reading
                place = reading._places(self.rows)
                reading.add(f"{place}: the rows of {self.sample_id!r} differ in {column!r}")
                break
        return found


def derive_classes(texts: Sequence[str]) -> tuple[str, ...]:
    """The classes of a column: whole numbers from 0 or 1 to the largest, anything else sorted; see `TargetColumn`."""
    names = {text for text in texts if text}
    if names and all(_WHOLE.fullmatch(name) for name in names):
        numbers = sorted(int(name) for name in names)
        if numbers[0] in (0, 1) and numbers[-1] < 1000:
            numbers = list(range(numbers[0], numbers[-1] + 1))
        return tuple(str(number) for number in numbers)
    return tuple(sorted(names))


def _whole(text: str) -> str:
    """`3.0`, as tables with empty cells come to hold it, is the class `3`."""
    return str(int(float(text))) if _WHOLE.fullmatch(text) else text


def _other_suffix(path: Path, folders: dict[Path, dict[str, str]]) -> str | None:
    """Whether the file is there under another suffix."""
    parent = path.parent
    if parent not in folders:
        names = [child.name for child in parent.iterdir()] if parent.is_dir() else []
        folders[parent] = {image_stem(name): name for name in names if name.lower().endswith(SUFFIXES)}
    name = folders[parent].get(image_stem(path.name))
    return f"there is {name}: set image_suffix" if name else None
