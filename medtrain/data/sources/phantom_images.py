"""A phantom to classify: chest radiographs with findings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from medtrain.data.columns import TableColumns, TargetColumn
from medtrain.data.sources.drawing import LUNGS, chest, cloud, ellipse, generator, grid, write_picture
from medtrain.data.sources.phantom import TABLE, TablePhantom, write_rows
from medtrain.registry import Range, register

CLASSES = ("normal", "nodule", "infiltrate", "effusion")
_FREQUENCY = (0.4, 0.2, 0.2, 0.2)
_FINDINGS = CLASSES[1:]
_GRADES = (0.45, 0.2, 0.15, 0.1, 0.1)
_TISSUE = 0.75
_VISIBLE = 0.1  # brighter than without a finding, of 1


@register("data", "phantom_images", tags=("images", "generated"))
@dataclass(frozen=True, kw_only=True)
class PhantomImages(TablePhantom):
    """Generated chest radiographs with findings to classify, to grade or to measure; 1 to 3 of each patient.

    Args:
        num_samples: Images.
        phantom_size: Rows and columns of an image.
        labels: What is to be predicted. classes: normal, nodule, infiltrate or effusion. multilabel: each of the three
            findings by itself, some of them unlabelled. grades: how far clouds have spread, from 0 to 4, most of them
            0. number: the same as a share of the lungs.
        unlabelled: Share of the labels that nobody gave; of multilabel only.
        annotated: Share of the images with anything to see that come with a mask of it.
    """

    root: str | None = "outputs/phantom_images"
    num_samples: Annotated[int, Range(ge=8)] = 240
    phantom_size: Annotated[int, Range(ge=16)] = 64
    labels: Literal["classes", "multilabel", "grades", "number"] = "classes"
    unlabelled: Annotated[float, Range(ge=0, lt=1)] = 0.15
    annotated: Annotated[float, Range(ge=0, le=1)] = 0.0

    def columns(self) -> TableColumns:
        """See `TablePhantom.columns`."""
        targets: tuple[TargetColumn, ...]
        if self.labels == "classes":
            targets = (TargetColumn(column="finding", classes=CLASSES),)
        elif self.labels == "multilabel":
            targets = tuple(TargetColumn(column=name, classes=("0", "1"), names=("no", "yes")) for name in _FINDINGS)
        elif self.labels == "grades":
            targets = (TargetColumn(column="grade", classes=tuple(str(grade) for grade in range(len(_GRADES)))),)
        else:
            targets = (TargetColumn(column="opacity", kind="number", low=0, high=1),)
        annotation = "mask" if self.annotated > 0 else None
        return TableColumns(images=("image",), group="patient", targets=targets, annotation=annotation)

    def _what(self) -> str:
        return f"{self.num_samples} images"

    def _write(self, folder: Path) -> None:
        patients = generator(self.phantom_seed, 0)
        rows: list[dict[str, object]] = []
        patient, left = -1, 0
        for index in range(self.num_samples):
            if left == 0:
                patient, left = patient + 1, int(patients.integers(1, 4))
            left -= 1
            rng = generator(self.phantom_seed, 1, index)
            name = f"images/{index:04d}.png"
            picture = chest(rng, self.phantom_size)
            bare = picture.copy()
            row: dict[str, object] = {"image": name, "patient": f"p{patient:04d}", **self._draw(rng, picture)}
            write_picture(folder / name, picture, rng)
            if self.annotated > 0:
                row["mask"] = self._write_mask(rng, folder, f"masks/{index:04d}.png", picture - bare > _VISIBLE)
            rows.append(row)
        write_rows(folder / TABLE, rows)

    def _write_mask(self, rng: np.random.Generator, folder: Path, name: str, mask: np.ndarray) -> str | None:
        if not mask.any() or rng.random() >= self.annotated:
            return None
        write_picture(folder / name, mask.astype(np.float32), rng, noise=0)
        return name

    def _draw(self, rng: np.random.Generator, picture: np.ndarray) -> dict[str, object]:
        """Draw what is to be seen; return the columns that tell it."""
        if self.labels == "classes":
            finding = CLASSES[int(rng.choice(len(CLASSES), p=_FREQUENCY))]
            _find(rng, picture, finding)
            return {"finding": finding}
        if self.labels == "multilabel":
            there = {name: bool(rng.random() < 0.35) for name in _FINDINGS}
            for name, seen in there.items():
                if seen:
                    _find(rng, picture, name)
            return {name: None if rng.random() < self.unlabelled else int(seen) for name, seen in there.items()}
        if self.labels == "grades":
            grade = int(rng.choice(len(_GRADES), p=_GRADES))
            _spread(rng, picture, grade / (len(_GRADES) - 1))
            return {"grade": grade}
        share = round(float(rng.uniform(0, 1)), 3)
        _spread(rng, picture, share)
        return {"opacity": share}


def _find(rng: np.random.Generator, picture: np.ndarray, finding: str) -> None:
    """Draw a finding into one of the lungs."""
    row, column = LUNGS[int(rng.integers(2))]
    place = (row + float(rng.uniform(-0.2, 0.12)), column + float(rng.uniform(-0.06, 0.06)))
    if finding == "nodule":
        radius = float(rng.uniform(0.04, 0.06))
        ellipse(picture, place, (radius, radius), _TISSUE + 0.1, edge=0.02)
    elif finding == "infiltrate":
        cloud(rng, picture, place, float(rng.uniform(0.14, 0.2)), 0.85)
    elif finding == "effusion":
        _effusion(picture, column, row + 0.34 - float(rng.uniform(0.14, 0.28)))


def _effusion(picture: np.ndarray, column: float, level: float) -> None:
    """Fill a lung up to a level, higher at its outer wall."""
    rows, columns = grid(len(picture))
    outward = np.abs(columns - 0.5) - abs(column - 0.5)
    share = np.clip((rows - (level - 0.5 * outward)) / 0.03, 0, 1) * (np.abs(columns - column) < 0.18)
    picture += share.astype(np.float32) * (np.float32(_TISSUE) - picture)


def _spread(rng: np.random.Generator, picture: np.ndarray, share: float) -> None:
    """Cloud both lungs from their bases up."""
    for row, column in LUNGS:
        for step in range(5):
            opacity = float(np.clip(share * 5 - step, 0, 1)) * 0.9
            if opacity > 0:
                cloud(rng, picture, (row + 0.26 - 0.13 * step, column), 0.13, opacity)
