"""A phantom of several volumes per patient: three phases of a CT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from medtrain.data.columns import TableColumns, TargetColumn
from medtrain.data.io.nifti import SourceGrid, write_image
from medtrain.data.sources.drawing import generator
from medtrain.data.sources.phantom import TABLE, TablePhantom, write_rows
from medtrain.registry import Range, register

PHASES = ("non_contrast", "arterial", "portal")
_LIVER = {"non_contrast": 55.0, "arterial": 75.0, "portal": 110.0}
_LESION = {"non_contrast": (45.0, 45.0), "arterial": (70.0, 140.0), "portal": (75.0, 140.0)}  # without, with contrast
_SPACING = (5.0, 3.0, 3.0)
_NOISE_HU = 12.0


@register("data", "phantom_views", tags=("images", "generated", "nifti"))
@dataclass(frozen=True, kw_only=True)
class PhantomViews(TablePhantom):
    """Generated three-phase CT volumes of a liver with a lesion that is malignant if its contrast comes and goes.

    Malignant lesions are bright in the arterial phase and dark in the portal one. Benign ones stay bright, become
    bright late, or stay dark, so that no phase suffices alone. Intensities are in Hounsfield units.

    Args:
        num_samples: Patients.
        volume_shape: Voxels D, H, W.
        missing: Share of the phases that were not scanned; a patient has at least one.
    """

    root: str | None = "outputs/phantom_views"
    num_samples: Annotated[int, Range(ge=8)] = 120
    volume_shape: tuple[Annotated[int, Range(ge=8)], Annotated[int, Range(ge=8)], Annotated[int, Range(ge=8)]] = (
        12,
        32,
        32,
    )
    missing: Annotated[float, Range(ge=0, lt=1)] = 0.05

    def columns(self) -> TableColumns:
        """See `TablePhantom.columns`."""
        target = TargetColumn(column="lesion", classes=("benign", "malignant"))
        return TableColumns(images=PHASES, sample_id="patient", targets=(target,))

    def _what(self) -> str:
        return f"{self.num_samples} patients with {len(PHASES)} volumes each"

    def _write(self, folder: Path) -> None:
        (folder / "volumes").mkdir()
        grid = _grid(self.volume_shape)
        rows: list[dict[str, object]] = []
        for index in range(self.num_samples):
            rng = generator(self.phantom_seed, 7, index)
            malignant = index % 2 == 1
            others = [(False, False), (False, True), (True, True)]
            early, late = (True, False) if malignant else others[int(rng.integers(3))]
            body = self._place(rng)
            scanned = [bool(rng.random() >= self.missing) for _ in PHASES]
            scanned[int(rng.integers(len(PHASES)))] |= not any(scanned)
            row: dict[str, object] = {"patient": f"p{index:04d}", "lesion": "malignant" if malignant else "benign"}
            for phase, contrast, is_there in zip(PHASES, (False, early, late), scanned):
                name = f"volumes/p{index:04d}_{phase}.nii.gz"
                volume = self._draw(rng, body, phase, contrast)
                if is_there:
                    write_image(folder / name, volume[None], grid, sync=False)
                row[phase] = name if is_there else None
            rows.append(row)
        write_rows(folder / TABLE, rows)

    def _place(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Where the liver [D, H, W] and the lesion [D, H, W] are, from 0 to 1."""
        axes = [(np.arange(n) + 0.5) / n for n in self.volume_shape]
        places = np.meshgrid(*axes, indexing="ij")
        liver_radii = rng.uniform(0.38, 0.46, size=3)
        centre = rng.uniform(0.4, 0.6, size=3)
        radius = rng.uniform(0.15, 0.22)

        def inside(middle: np.ndarray, radii: np.ndarray) -> np.ndarray:
            squared = sum(((place - m) / r) ** 2 for place, m, r in zip(places, middle, radii))
            return np.clip(0.5 - (np.sqrt(squared) - 1) * 4, 0, 1)

        return inside(np.full(3, 0.5), liver_radii), inside(centre, np.full(3, radius))

    def _draw(
        self, rng: np.random.Generator, body: tuple[np.ndarray, np.ndarray], phase: str, contrast: bool
    ) -> np.ndarray:
        liver, lesion = body
        volume = np.full(self.volume_shape, -80.0)
        volume += liver * (_LIVER[phase] - volume)
        volume += lesion * (_LESION[phase][int(contrast)] - volume)
        volume += rng.normal(0, _NOISE_HU, size=volume.shape)
        return np.rint(volume).astype(np.int16)


def _grid(shape: tuple[int, int, int]) -> SourceGrid:
    depth, height, width = _SPACING
    affine = ((width, 0.0, 0.0, 0.0), (0.0, height, 0.0, 0.0), (0.0, 0.0, depth, 0.0), (0.0, 0.0, 0.0, 1.0))
    return SourceGrid(affine=affine, shape=(shape[2], shape[1], shape[0]))
