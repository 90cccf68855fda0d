"""Labelled images, tabular values or both from a table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medtrain.data.columns import ColumnNames, TableColumns, TargetColumn
from medtrain.data.images.incoming import read_new
from medtrain.data.images.plan import ImagePlan
from medtrain.data.images.settings import ImageData
from medtrain.data.sample import SampleSet
from medtrain.data.table import read_table
from medtrain.errors import UsageError
from medtrain.registry import register

_VAGUE = ("labels", "train", "table", "data", "index", "metadata")


@register("data", "csv", tags=("images", "tabular"))
@dataclass(frozen=True, kw_only=True)
class CsvData(ImageData, ColumnNames):
    """The rows of a table (CSV, TSV, Parquet): images by path, targets, patients, views, bags, tabular values.

    In its simplest form: `data=csv data.path=labels.csv data.images=file data.targets=diagnosis data.group=patient`.

    Args:
        root: Folder that image paths are below; the table's own if None.
        path: The table.
        targets: What to predict: columns by name, or with settings, as in
            `data.targets=[{column: age, kind: number}]`.
        target_kind: What the columns given by name alone hold: classes or numbers.
        target_classes: Their classes in order; None for the values that occur.
        missing_class: Class that their empty cells stand for, such as unknown; None where these are unlabelled.
        separator: Of a text file. None for tab in .tsv, otherwise whichever of , ; tab | the header holds most of.
        encoding: Of a text file.
    """

    path: str
    targets: str | tuple[str | TargetColumn, ...] = ()
    target_kind: Literal["class", "number"] = "class"
    target_classes: tuple[str, ...] | None = None
    missing_class: str | None = None
    separator: str | None = None
    encoding: str = "utf-8-sig"

    def read(self) -> SampleSet:
        """Read the table; see `ImageData.read`."""
        path = Path(self.path).expanduser()
        found = read_table(
            path,
            dataclasses.replace(self.input_columns(), targets=self.target_columns()),
            root=None if self.root is None else Path(self.root).expanduser(),
            separator=self.separator,
            encoding=self.encoding,
        )
        # `labels` says less than the folder it lies in
        return dataclasses.replace(found, set_name=path.absolute().parent.name) if path.stem in _VAGUE else found

    def read_new(self, path: Path, plan: ImagePlan) -> SampleSet:
        """Find new samples, in a table of the same columns; see `ImageData.read_new`."""
        root = None if self.root is None else Path(self.root).expanduser()
        return read_new(
            path, plan, columns=self.input_columns(), root=root, separator=self.separator, encoding=self.encoding
        )

    def input_columns(self) -> TableColumns:
        """Which column holds what, but for the targets."""
        return TableColumns(**{field.name: getattr(self, field.name) for field in dataclasses.fields(ColumnNames)})

    def target_columns(self) -> tuple[TargetColumn, ...]:
        """The targets with their settings.

        Raises:
            UsageError: None is given, one is given twice, or settings have nothing to apply to.
        """
        given = (self.targets,) if isinstance(self.targets, str) else self.targets
        if not given:
            raise UsageError("data.targets is not set: which column is to be predicted?", hint="data.targets=COLUMN")
        shared = {"kind": self.target_kind, "classes": self.target_classes, "missing": self.missing_class}
        if all(isinstance(target, TargetColumn) for target in given):
            default = TargetColumn(column="")
            unused = [name for name, value in shared.items() if value != getattr(default, name)]
            if unused:
                key = {"kind": "target_kind", "classes": "target_classes", "missing": "missing_class"}[unused[0]]
                raise UsageError(
                    f"data.{key} is for targets given by name alone, but every target has settings of its own",
                    hint=f"write it into them: data.targets=[{{column: ..., {unused[0]}: ...}}]",
                )
        columns = tuple(
            target
            if isinstance(target, TargetColumn)
            else TargetColumn(
                column=target, kind=self.target_kind, classes=self.target_classes, missing=self.missing_class
            )
            for target in given
        )
        repeated = [target.column for index, target in enumerate(columns) if target.column in _names(columns[:index])]
        if repeated:
            raise UsageError(f"data.targets names {repeated[0]!r} twice")
        return columns


def _names(columns: tuple[TargetColumn, ...]) -> list[str]:
    return [target.column for target in columns]
