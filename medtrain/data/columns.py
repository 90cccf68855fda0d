"""The settings of a table: which column holds what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from medtrain.data.io.description import parse_group_pattern
from medtrain.errors import UsageError
from medtrain.registry import Format

FIELD = re.compile(r"\{([^{}]+)\}")
"""A column named in an image pattern."""


@dataclass(frozen=True, kw_only=True)
class TargetColumn:
    """A column to predict.

    Args:
        column: Its name.
        kind: A class, or a number.
        classes: Values of the column in class order. None for the values that occur: whole numbers from 0 or 1 up to
            the largest, whether or not each occurs, anything else sorted. Columns of whole numbers have the classes
            of all of them together; those of 0 and 1 alone are apart.
        names: What the classes are called in results, in class order; None for their values.
        missing: Class that an empty cell stands for, such as `unknown`, the last one if `classes` does not place it.
            None where an empty cell means unlabelled.
        low: Smallest number allowed.
        high: Largest number allowed.
        required: Whether an empty cell is an error; it means unlabelled otherwise.
    """

    column: str
    kind: Literal["class", "number"] = "class"
    classes: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    missing: str | None = None
    low: float | None = None
    high: float | None = None
    required: bool = False


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Which column of a table holds what, but for the targets.

    Args:
        images: The image column; several are the views of a sample. Cells are paths below the folder.
        image_pattern: Instead of image columns: a path below the folder with columns in braces, such as
            `{patient}/{eye}.png`.
        image_folder: Folder of the images below the root.
        image_suffix: Added to paths that do not end with it, such as `.png`.
        missing_images: Whether a sample may have no image at all; a missing view is never an error.
        annotation: Column of masks, named like images: white where something is that a model should look at. An empty
            cell means that nobody drew one. Not with views or bags.
        annotation_box: Instead of masks: columns with the left, top, right and bottom edge of a box around it, in
            pixels of the image file. All four are empty where nobody drew one. Or a single column of lists of boxes,
            `[[left, top, right, bottom], ...]`.
        annotation_point: Instead of masks: columns with x and y of a place to look at, in pixels of the image file,
            and maybe one with the radius around it; 0.09 of the shorter side where none is given. Or a single column
            of lists of points, `[[x, y], [x, y, radius], ...]`.
        sample_id: Column of ids. None for the image's path without its suffix, or the line.
        group: Column of the patient. None where each sample is one.
        group_pattern: Regular expression whose first group is the patient; searched in the group column, or in the
            sample id without one.
        view: Column of view names: rows of one sample id are views of it.
        views: View names in order; None for those that occur, sorted. Only with `view`.
        bag: Column of the bag: rows of one value are the instances of one sample. Not with `view`.
        part: Column that says train, val or test.
        numeric: Columns of numbers.
        categorical: Columns of categories.
        metadata: Columns that no model is shown, such as site or scanner: results tell them, and
            `task.report.subgroups` may name them.
        decimal: Decimal mark of numbers.
    """

    images: tuple[str, ...] = ()
    image_pattern: str | None = None
    image_folder: str = ""
    image_suffix: str = ""
    missing_images: bool = False
    annotation: str | None = None
    annotation_box: tuple[str, ...] | None = None
    annotation_point: tuple[str, ...] | None = None
    sample_id: str | None = None
    group: str | None = None
    group_pattern: Annotated[str, Format(parse_group_pattern, r"'^(\w+?)_'")] | None = None
    view: str | None = None
    views: tuple[str, ...] | None = None
    bag: str | None = None
    part: str | None = None
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    decimal: Literal[".", ","] = "."


@dataclass(frozen=True, kw_only=True)
class TableColumns(ColumnNames):
    """Which column of a table holds what.

    Args:
        targets: What to predict.
    """

    targets: tuple[TargetColumn, ...] = ()

    def names(self) -> list[str]:
        """Every column that must be there, in order, each once."""
        fields = FIELD.findall(self.image_pattern or "")
        single = [self.annotation, self.sample_id, self.group, self.view, self.bag, self.part]
        targets = [target.column for target in self.targets]
        marks = [*(self.annotation_box or ()), *(self.annotation_point or ())]
        wanted = [*self.images, *fields, *targets, *single, *marks, *self.numeric, *self.categorical, *self.metadata]
        return list(dict.fromkeys(name for name in wanted if name is not None))


def check_columns(columns: TableColumns) -> None:
    """See that the settings do not contradict each other.

    Raises:
        UsageError: They do.
    """
    if columns.images and columns.image_pattern:
        raise UsageError("give image columns or an image pattern, not both")
    if columns.view and columns.bag:
        raise UsageError("give a view column or a bag column, not both")
    if columns.view and columns.sample_id is None:
        raise UsageError("a view column needs a column of sample ids: rows of one id are views of one sample")
    if columns.views is not None and columns.view is None:
        raise UsageError("view names are given, but no view column")
    if (columns.view or columns.bag) and len(columns.images) > 1:
        raise UsageError("with a view or bag column each row holds one image, but several image columns are given")
    annotated = [columns.annotation, columns.annotation_box, columns.annotation_point]
    if sum(one is not None for one in annotated) > 1:
        raise UsageError("give one of annotation, annotation_box and annotation_point")
    if columns.annotation_box is not None and len(columns.annotation_box) not in (1, 4):
        raise UsageError("annotation_box names four columns, left, top, right and bottom, or one of lists of boxes")
    if columns.annotation_point is not None and len(columns.annotation_point) not in (1, 2, 3):
        raise UsageError(
            "annotation_point names two or three columns, x, y and maybe the radius, or one of lists of points"
        )
    if any(annotated) and (columns.view or columns.bag or (len(columns.images) != 1 and not columns.image_pattern)):
        raise UsageError("an annotation is of the one image of a sample: not with views, bags or without an image")
    if not (columns.images or columns.image_pattern or columns.numeric or columns.categorical):
        raise UsageError("neither images nor tabular columns are given: there is nothing to learn from")
    both = [name for name in columns.metadata if name in (*columns.numeric, *columns.categorical)]
    if both:
        raise UsageError(
            f"metadata are not shown to the model, but {both[0]!r} is one of its numeric or categorical columns",
            hint="subgroups may name those columns, too",
        )
    for target in columns.targets:
        _check_target(target)


def _check_target(target: TargetColumn) -> None:
    where = f"target {target.column!r}"
    if target.kind == "number" and (target.classes or target.names or target.missing):
        raise UsageError(f"{where}: classes, names and missing are of classes, but its kind is number")
    if target.kind == "class" and (target.low is not None or target.high is not None):
        raise UsageError(f"{where}: low and high are of numbers", hint="set kind: number")
    if target.required and target.missing is not None:
        raise UsageError(f"{where}: an empty cell is either an error (required) or a class (missing), not both")
