"""A phantom of six graded lung zones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from medtrain.data.columns import TableColumns, TargetColumn
from medtrain.data.sources.drawing import chest, cloud, ellipse, generator, write_picture, zone_centres
from medtrain.data.sources.phantom import TABLE, TablePhantom, write_rows
from medtrain.registry import Range, register

ZONES = tuple(zone_centres())
"""right_sup, left_sup, right_mid, left_mid, right_inf, left_inf: the patient's right is the left of the picture."""

GRADES = ("0", "1", "2", "3")
UNKNOWN = "unknown"

_STEPS = np.array([[0.5, 0.3, 0.1, 0.1], [0.2, 0.3, 0.3, 0.2], [0.1, 0.2, 0.3, 0.4]])  # of a mild to a severe image
_OPACITY = (0.0, 0.35, 0.65, 0.95)


@register("data", "phantom_zones", tags=("images", "generated"))
@dataclass(frozen=True, kw_only=True)
class PhantomZones(TablePhantom):
    """Generated chest radiographs whose six lung zones are graded from 0 to 3, or unknown behind something opaque.

    The grade is how cloudy a zone is. Zones of one image resemble each other, as they do in patients; the heart tells
    left from right. An empty cell of the table is an unknown zone.

    Args:
        num_samples: Images, each of a patient of its own.
        phantom_size: Rows and columns of an image.
        unknown: Share of the zones that cannot be graded.
    """

    root: str | None = "outputs/phantom_zones"
    num_samples: Annotated[int, Range(ge=8)] = 300
    phantom_size: Annotated[int, Range(ge=16)] = 64
    unknown: Annotated[float, Range(ge=0, lt=1)] = 0.1

    def columns(self) -> TableColumns:
        """See `TablePhantom.columns`."""
        targets = tuple(TargetColumn(column=zone, classes=(*GRADES, UNKNOWN), missing=UNKNOWN) for zone in ZONES)
        return TableColumns(images=("image",), targets=targets)

    def _what(self) -> str:
        return f"{self.num_samples} images"

    def _write(self, folder: Path) -> None:
        rows: list[dict[str, object]] = []
        for index in range(self.num_samples):
            rng = generator(self.phantom_seed, 2, index)
            name = f"images/{index:04d}.png"
            picture, grades = self._draw(rng)
            write_picture(folder / name, picture, rng)
            rows.append({"image": name, **grades})
        write_rows(folder / TABLE, rows)

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, int | None]]:
        picture = chest(rng, self.phantom_size)
        severity = int(rng.integers(len(_STEPS)))
        grades: dict[str, int | None] = {}
        hidden = []
        for zone, centre in zone_centres().items():
            grade = int(rng.choice(len(GRADES), p=_STEPS[severity]))
            place = (centre[0] + float(rng.uniform(-0.02, 0.02)), centre[1] + float(rng.uniform(-0.02, 0.02)))
            cloud(rng, picture, place, 0.12, _OPACITY[grade])
            grades[zone] = grade
            if rng.random() < self.unknown:
                grades[zone] = None
                hidden.append(place)
        for place in hidden:  # last, so that no neighbour's cloud lies over it
            ellipse(picture, place, (0.09, 0.11), 1.0, edge=0.01)
        return picture, grades
