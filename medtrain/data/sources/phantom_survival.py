"""A phantom of survival times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from medtrain.data.columns import TableColumns, TargetColumn
from medtrain.data.sources.drawing import LUNGS, chest, ellipse, generator, write_picture
from medtrain.data.sources.phantom import TABLE, TablePhantom, write_rows
from medtrain.registry import Range, register

_RADII = (0.04, 0.14)
_AGES = (40.0, 85.0)
_MEDIAN_MONTHS = 24.0
_SHAPE = 1.5  # of the Weibull distribution: the hazard grows with time


@register("data", "phantom_survival", tags=("images", "generated"))
@dataclass(frozen=True, kw_only=True)
class PhantomSurvival(TablePhantom):
    """Generated radiographs with a tumour and the months until death or the end of follow-up.

    Times are Weibull distributed with a hazard proportional to exp(image_effect z + age_effect a), where z is the
    tumour's radius and a the age, both standardised. Who is alive at the end of follow-up, which is uniformly
    distributed, is censored: event 0.

    Args:
        num_samples: Patients.
        phantom_size: Rows and columns of an image.
        image_effect: Log hazard ratio of a tumour that is larger by one standard deviation.
        age_effect: The same of the age.
        follow_up: Longest follow-up in months; shorter means more censored patients.
    """

    root: str | None = "outputs/phantom_survival"
    num_samples: Annotated[int, Range(ge=8)] = 300
    phantom_size: Annotated[int, Range(ge=16)] = 48
    image_effect: float = 1.5
    age_effect: float = 0.5
    follow_up: Annotated[float, Range(gt=0)] = 96.0

    def columns(self) -> TableColumns:
        """See `TablePhantom.columns`."""
        time = TargetColumn(column="time", kind="number", low=0)
        event = TargetColumn(column="event", kind="number", low=0, high=1)
        return TableColumns(
            images=("image",), sample_id="patient", targets=(time, event), numeric=("age",), categorical=("smoker",)
        )

    def _what(self) -> str:
        return f"{self.num_samples} patients"

    def _write(self, folder: Path) -> None:
        rows: list[dict[str, object]] = []
        for index in range(self.num_samples):
            rng = generator(self.phantom_seed, 8, index)
            patient = f"p{index:04d}"
            radius, age = float(rng.uniform(*_RADII)), round(float(rng.uniform(*_AGES)), 1)
            risk = self.image_effect * _standard(radius, _RADII) + self.age_effect * _standard(age, _AGES)
            scale = _MEDIAN_MONTHS / np.log(2) ** (1 / _SHAPE)
            death = scale * (rng.exponential() * np.exp(-risk)) ** (1 / _SHAPE)
            end = float(rng.uniform(6.0, max(6.0, self.follow_up)))
            row, column = LUNGS[int(rng.integers(2))]
            picture = chest(rng, self.phantom_size)
            place = (row + float(rng.uniform(-0.15, 0.15)), column + float(rng.uniform(-0.05, 0.05)))
            ellipse(picture, place, (radius, radius), 0.95, edge=0.03)
            name = f"images/{patient}.png"
            write_picture(folder / name, picture, rng)
            rows.append(
                {
                    "patient": patient,
                    "image": name,
                    "age": age,
                    "smoker": "yes" if rng.random() < 0.4 else "no",
                    "time": round(max(0.1, min(float(death), end)), 2),
                    "event": int(death <= end),
                }
            )
        write_rows(folder / TABLE, rows)


def _standard(value: float, limits: tuple[float, float]) -> float:
    """A uniformly distributed value with mean 0 and standard deviation 1."""
    low, high = limits
    return (value - (low + high) / 2) / ((high - low) / 12**0.5)
