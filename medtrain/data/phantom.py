"""Generated volumes that look like abdominal CT with liver and tumours, for trying things out without any data."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from medtrain.data.case import Dataset
from medtrain.data.generated import generate
from medtrain.data.io.folders import DESCRIPTION
from medtrain.data.io.nifti import SourceGrid, write_image
from medtrain.data.msd import discover_msd
from medtrain.data.volume_data import VolumeData
from medtrain.registry import Range, register
from medtrain.run.threads import available_threads

_LOG = logging.getLogger(__name__)
_FORMAT = 2
_LABELS = {"0": "background", "1": "liver", "2": "cancer"}
_LIVER, _TUMOUR = 1, 2
_SLAB_VOXELS = 4_000_000
_MAX_WORKERS = 4


@register("data", "phantom", tags=("segmentation", "generated"))
@dataclass(frozen=True, kw_only=True)
class PhantomData(VolumeData):
    """Generated abdominal-CT-like volumes with liver and tumour, in the Decathlon's layout.

    A body with fat, muscle, spine, a spleen that resembles the liver, a liver and 1 to 3 tumours in it, with noise;
    sizes, spacings (anisotropic) and file orientations vary. The same parameters always give the same volumes.

    Args:
        root: Folder the files are written to, once.
        num_cases: Labelled cases.
        num_test_cases: Further cases without a label, in imagesTs.
        phantom_seed: Another seed gives other anatomies.
        true_scale: False makes cases of about 64 x 64 x 40 voxels in seconds; True makes them as large as the liver
            task's (512 x 512 x 75 to 700 voxels of about 0.7 mm), which takes minutes and some 100 MB per case.
    """

    root: str | None = "outputs/phantom"
    num_cases: Annotated[int, Range(ge=1)] = 20
    num_test_cases: Annotated[int, Range(ge=0)] = 2
    phantom_seed: Annotated[int, Range(ge=0)] = 0
    true_scale: bool = False

    def discover(self) -> Dataset:
        """Generate the files unless they are there; see `VolumeData.discover`."""
        wanted = {
            "format": _FORMAT,
            "num_cases": self.num_cases,
            "num_test_cases": self.num_test_cases,
            "phantom_seed": self.phantom_seed,
            "true_scale": self.true_scale,
        }
        total = self.num_cases + self.num_test_cases
        return discover_msd(generate(self.root, wanted, self._write, what=f"{total} cases"))

    def _write(self, folder: Path) -> None:
        total = self.num_cases + self.num_test_cases
        names = [f"phantom_{index:03d}.nii.gz" for index in range(total)]
        for part in ("imagesTr", "labelsTr", "imagesTs"):
            (folder / part).mkdir()

        def write(index: int) -> None:
            image, label, grid = make_case(self.phantom_seed, index, true_scale=self.true_scale)
            labelled = index < self.num_cases
            write_image(folder / ("imagesTr" if labelled else "imagesTs") / names[index], image[None], grid, sync=False)
            if labelled:
                write_image(folder / "labelsTr" / names[index], label[None], grid, sync=False)
            if self.true_scale:
                _LOG.info("phantom case %d of %d written", index + 1, total)

        with ThreadPoolExecutor(min(_MAX_WORKERS, available_threads())) as pool:
            list(pool.map(write, range(total)))
        training = [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in names[: self.num_cases]]
        description = {
            "name": "Phantom",
            "description": "Generated volumes that look like abdominal CT, with liver and tumours",
            "tensorImageSize": "3D",
            "modality": {"0": "CT"},
            "labels": _LABELS,
            "numTraining": self.num_cases,
            "numTest": self.num_test_cases,
            "training": training,
            "test": [f"./imagesTs/{n}" for n in names[self.num_cases :]],
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def make_case(seed: int, index: int, *, true_scale: bool = False) -> tuple[np.ndarray, np.ndarray, SourceGrid]:
    """Generate one case; a pure function of its arguments.

    Args:
        seed: Of the whole set.
        index: Of the case.
        true_scale: See `PhantomData`.

    Returns:
        Image int16 in HU [D, H, W], label uint8 [D, H, W], both canonical, and the grid of the file.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))
    shape, spacing = _draw_grid(rng, true_scale)
    grid = _file_grid(rng, shape, spacing)
    organs = _draw_anatomy(rng, np.array(shape) * np.array(spacing))
    sigma = rng.uniform(10.0, 20.0)
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(s) for n, s in zip(shape, spacing)]
    image = np.empty(shape, dtype=np.int16)
    label = np.zeros(shape, dtype=np.uint8)
    step = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        slab = slice(start, start + step)
        hu = np.full(label[slab].shape, -1000.0, dtype=np.float32)
        for organ in organs:
            organ.paint(hu, label[slab], [axes[0][slab], *axes[1:]], edge=spacing[1])
        hu += np.float32(sigma) * rng.standard_normal(hu.shape, dtype=np.float32)
        image[slab] = np.clip(np.rint(hu), -1024, 3071)
    return image, label, grid


@dataclass(frozen=True)
class _Organ:
    """A wavy ellipsoid; the order of painting decides what covers what.

    Args:
        centre: D, H, W in mm from the centre of the volume.
        radii: D, H, W in mm; infinite for a column.
        hu: Its intensity.
        waves: Amplitude, and per axis wavelength in mm and phase of the surface's waves [1 + 3 + 3].
        value: Its label value, or None to leave the label as it is.
        within: Only voxels of this label value are painted.
    """

    centre: np.ndarray
    radii: np.ndarray
    hu: float
    waves: np.ndarray
    value: int | None = None
    within: int | None = None

    def paint(self, hu: np.ndarray, label: np.ndarray, axes: list[np.ndarray], *, edge: float) -> None:
        """Blend the organ into a slab over an edge of `edge` mm and set its label where it covers half a voxel."""
        reach = self.radii * (1 + self.waves[0]) + 2 * edge
        box = tuple(
            slice(*np.searchsorted(axis, (centre - far, centre + far)))
            for axis, centre, far in zip(axes, self.centre, reach)
        )
        parts = np.ix_(*(axis[side] for axis, side in zip(axes, box)))
        if min(part.size for part in parts) == 0:
            return
        squared = np.zeros((1, 1, 1), dtype=np.float32)
        swell = np.ones((1, 1, 1), dtype=np.float32)
        for axis in range(3):
            offset = parts[axis] - np.float32(self.centre[axis])
            squared = squared + (offset / np.float32(self.radii[axis])) ** 2
            swell = swell + np.float32(self.waves[0] / 3) * np.sin(
                offset * np.float32(2 * np.pi / self.waves[1 + axis]) + np.float32(self.waves[4 + axis])
            )
        distance = (np.sqrt(squared) - swell) * np.float32(self.radii.min())
        share = np.clip(np.float32(0.5) - distance / np.float32(edge), 0, 1)
        if self.within is not None:
            share = share * (label[box] == self.within)
        hu[box] += share * (np.float32(self.hu) - hu[box])
        if self.value is not None:
            label[box][share > 0.5] = self.value


def _draw_grid(rng: np.random.Generator, true_scale: bool) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape and spacing in mm (D, H, W); slices are thicker than pixels in most cases, as in clinical CT."""
    if true_scale:
        slices = round(float(np.exp(rng.uniform(np.log(75), np.log(700)))))
        pixel = float(rng.uniform(0.6, 0.85))
        return (slices, 512, 512), (float(rng.uniform(260, 480)) / slices, pixel, pixel)
    height, width = (int(n) for n in rng.integers(58, 71, size=2))
    pixel = float(rng.uniform(4.9, 5.7))
    slices = int(rng.integers(34, 47))
    return (slices, height, width), (float(rng.uniform(4.5, 7.5)), pixel, pixel)


def _file_grid(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> SourceGrid:
    """A grid around the scanner's centre whose file axes point as one of three common conventions has it."""
    signs = [(1, 1, 1), (-1, -1, 1), (-1, 1, 1)][int(rng.integers(3))]  # RAS, LPS (DICOM), LAS
    affine = np.eye(4)
    for axis in range(3):
        step = signs[axis] * spacing[2 - axis]
        affine[axis, axis] = step
        affine[axis, 3] = -step * (shape[2 - axis] - 1) / 2 + float(rng.uniform(-20, 20))
    # NIfTI stores the affine in single precision
    rows = tuple(tuple(float(v) for v in row) for row in affine.astype(np.float32))
    return SourceGrid(affine=rows, shape=(shape[2], shape[1], shape[0]))


def _draw_anatomy(rng: np.random.Generator, extent: np.ndarray) -> list[_Organ]:
    """Organs in the order of painting, for a field of view of `extent` mm (D, H, W)."""

    def organ(
        centre: tuple[float, float, float],
        radii: tuple[float, float, float],
        hu: float,
        *,
        wavy: float = 0.0,
        move: float = 0.0,
        value: int | None = None,
        within: int | None = None,
    ) -> _Organ:
        waves = np.concatenate([[wavy], rng.uniform(60, 140, size=3), rng.uniform(0, 2 * np.pi, size=3)])
        place = np.array(centre) + rng.uniform(-move, move, size=3)
        return _Organ(place, np.array(radii) * rng.uniform(0.9, 1.1, size=3), hu, waves, value, within)

    column = 1e6
    size = float(rng.uniform(0.9, 1.05)) * min(1.0, extent[2] / 340, extent[1] / 300)
    body = organ((0, 0, 0), (column, 112 * size, 150 * size), -100, wavy=0.02)
    rind = float(rng.uniform(0.8, 0.92))
    muscle = _Organ(body.centre, np.array([column, body.radii[1] * rind, body.radii[2] * rind]), 45, body.waves)
    spine = organ((0, -68 * size, 0), (column, 20 * size, 21 * size), 380, move=4)
    spleen = organ(
        (10, -25 * size, -88 * size), (45, 36 * size, 26 * size), float(rng.uniform(95, 125)), wavy=0.08, move=8
    )
    liver = organ(
        (5, 12 * size, 48 * size),
        (68, 62 * size, 70 * size),
        float(rng.uniform(95, 125)),
        wavy=0.15,
        move=8,
        value=_LIVER,
    )
    tumours = []
    for _ in range(int(rng.integers(1, 4))):
        direction = rng.normal(size=3)
        direction *= 0.65 * rng.uniform() ** (1 / 3) / np.linalg.norm(direction)
        place = liver.centre + direction * liver.radii
        radius = float(rng.uniform(12, 26)) * size
        radii = (radius, radius, radius)
        hu = float(rng.uniform(40, 70))
        tumours.append(organ((place[0], place[1], place[2]), radii, hu, wavy=0.1, value=_TUMOUR, within=_LIVER))
    return [body, muscle, spine, spleen, liver, *tumours]
