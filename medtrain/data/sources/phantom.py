"""What phantoms of labelled images share: files that are generated at first use, and the table that names them."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medtrain.data.columns import TableColumns
from medtrain.data.generated import generate
from medtrain.data.images.incoming import read_new
from medtrain.data.images.plan import ImagePlan
from medtrain.data.images.settings import ImageData
from medtrain.data.sample import SampleSet
from medtrain.data.table import read_table
from medtrain.registry import Range

TABLE = "labels.csv"
"""The table of a phantom; `data=csv` can read it too."""

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class TablePhantom(ImageData):
    """Generated images and their table. The same parameters always give the same files.

    Args:
        root: Folder the files are written to, once.
        phantom_seed: Another seed gives other samples.
    """

    root: str | None = None
    phantom_seed: Annotated[int, Range(ge=0)] = 0

    def read(self) -> SampleSet:
        """Generate the files unless they are there; see `ImageData.read`."""
        folder = self.generate()
        found = read_table(folder / TABLE, self.columns(), root=folder)
        return dataclasses.replace(found, set_name=folder.name)

    def read_new(self, path: Path, plan: ImagePlan) -> SampleSet:
        """Find new samples, in a table of the same columns; see `ImageData.read_new`."""
        return read_new(path, plan, columns=self.columns(), root=Path(self.root) if self.root else None)

    def generate(self) -> Path:
        """Write the files unless they are there; return their folder.

        Raises:
            UsageError: The folder holds files that are not this phantom's.
        """
        shared = {field.name for field in dataclasses.fields(ImageData)} | {"root"}
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in shared}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
        return generate(
            self.root, {"format": _FORMAT, "kind": type(self).__name__, **plain}, self._write, what=self._what()
        )

    def columns(self) -> TableColumns:
        """What the columns of the table are."""
        raise NotImplementedError

    def _write(self, folder: Path) -> None:
        raise NotImplementedError

    def _what(self) -> str:
        """How much is generated, for people."""
        raise NotImplementedError


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table whose header is that of the first row; None is an empty cell."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
