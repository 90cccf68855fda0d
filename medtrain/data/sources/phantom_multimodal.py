"""A phantom that neither its pictures nor its table can tell alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from medtrain.data.columns import TableColumns, TargetColumn
from medtrain.data.sources.drawing import chest, cloud, generator, write_picture
from medtrain.data.sources.phantom import TABLE, TablePhantom, write_rows
from medtrain.registry import Range, register

_PER_PATIENT = 4
_SEXES = ("F", "M")


@register("data", "phantom_multimodal", tags=("images", "generated"))
@dataclass(frozen=True, kw_only=True)
class PhantomMultimodal(TablePhantom):
    """Generated radiographs with a table: ill is who has clouded lungs or a high marker, but not both.

    A patient comes four times: with and without clouds, each with a low and a high marker. So every picture and every
    row of the table is that of an ill one as often as of a healthy one, in every part of a split by patients, and a
    model that sees only one of them has an AUROC of 0.5. Age and sex tell nothing.

    Args:
        num_samples: Visits, rounded up to whole patients.
        phantom_size: Rows and columns of an image.
        missing: Share of the visits without an image, and without a marker. Both are needed to tell who is ill: with a
            share m the AUROC cannot exceed 1 - (1 - (1 - m)^2)^2 / 2, which is 0.995 for 0.05 and 0.935 for 0.2.
    """

    root: str | None = "outputs/phantom_multimodal"
    num_samples: Annotated[int, Range(ge=8)] = 600
    phantom_size: Annotated[int, Range(ge=16)] = 32
    missing: Annotated[float, Range(ge=0, lt=1)] = 0.05

    def columns(self) -> TableColumns:
        """See `TablePhantom.columns`."""
        return TableColumns(
            images=("image",),
            missing_images=True,
            sample_id="visit",
            group="patient",
            targets=(TargetColumn(column="ill", classes=("0", "1"), names=("healthy", "ill")),),
            numeric=("marker", "age"),
            categorical=("sex",),
        )

    def _what(self) -> str:
        return f"{self.num_samples} visits"

    def _write(self, folder: Path) -> None:
        rows: list[dict[str, object]] = []
        for patient in range(-(-self.num_samples // _PER_PATIENT)):
            rng = generator(self.phantom_seed, 3, patient)
            fixed = {"age": int(rng.integers(30, 90)), "sex": _SEXES[int(rng.integers(2))]}
            levels = [float(rng.normal(1.0, 0.15)), float(rng.normal(3.0, 0.25))]
            for visit in range(_PER_PATIENT):
                clouded, high = divmod(visit, 2)
                visit_id = f"p{patient:04d}_{visit}"
                name: str | None = f"images/{visit_id}.png"
                picture = self._draw(generator(self.phantom_seed, 4, patient), bool(clouded))
                write_picture(folder / str(name), picture, rng)
                marker: float | None = round(levels[high] + float(rng.normal(0, 0.02)), 3)
                if rng.random() < self.missing:
                    (folder / str(name)).unlink()
                    name = None
                if rng.random() < self.missing:
                    marker = None
                known = {key: None if rng.random() < self.missing else value for key, value in fixed.items()}
                rows.append(
                    {"visit": visit_id, "patient": f"p{patient:04d}", "image": name, "ill": clouded ^ high}
                    | {"marker": marker}
                    | known
                )
        write_rows(folder / TABLE, rows)

    def _draw(self, rng: np.random.Generator, clouded: bool) -> np.ndarray:
        picture = chest(rng, self.phantom_size)
        place = (float(rng.uniform(0.35, 0.6)), 0.3 if rng.random() < 0.5 else 0.7)
        cloud(rng, picture, place, 0.22, 0.9 if clouded else 0.0)
        return picture
