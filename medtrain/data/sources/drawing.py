"""Pictures for phantoms: a chest radiograph with lungs in six zones, clouds, discs and noise.

A picture is float32 [H, W] from 0 (black) to 1 (white). Coordinates are shares of the picture: rows from 0 (top) to 1,
columns from 0 (left of the picture, the patient's right) to 1. Every function draws on the picture it is given.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

LUNGS = ((0.47, 0.30), (0.47, 0.70))
"""Centres (row, column) of the patient's right lung, on the left of the picture, and of the left one."""

_LUNG_RADII = (0.34, 0.16)
_TISSUE, _LUNG = 0.72, 0.22


def generator(*key: int) -> np.random.Generator:
    """A generator for a picture: a pure function of the numbers that name it."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def chest(rng: np.random.Generator, size: int) -> np.ndarray:
    """A chest: bright tissue, two dark lungs, ribs and the heart on the patient's left; every one a little different.

    Args:
        rng: Of the variation.
        size: Rows and columns.
    """
    rows, columns = grid(size)
    picture = np.full((size, size), _TISSUE, dtype=np.float32)
    lung = np.float32(_LUNG + rng.uniform(-0.04, 0.04))
    for centre in LUNGS:
        ellipse(picture, centre, _scaled(rng, _LUNG_RADII), float(lung), edge=0.03)
    ribs = 0.04 * np.sin(2 * np.pi * (9 * rows + 2.5 * np.abs(columns - 0.5) + rng.uniform()))
    picture += ribs.astype(np.float32)
    ellipse(picture, (0.62, 0.56), _scaled(rng, (0.14, 0.12)), _TISSUE + 0.06, edge=0.03)
    return picture


def zone_centres() -> dict[str, tuple[float, float]]:
    """The middles of the six zones: three of the patient's right lung from the top, three of the left one."""
    thirds = zip(("sup", "mid", "inf"), (-0.21, 0.0, 0.21))
    return {
        f"{side}_{name}": (row + shift, column)
        for name, shift in thirds
        for side, (row, column) in zip(("right", "left"), LUNGS)
    }


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row [H, 1] and column [1, W] of every pixel's middle."""
    places = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return places[:, None], places[None, :]


def ellipse(
    picture: np.ndarray,
    centre: tuple[float, float],
    radii: tuple[float, float],
    value: float,
    *,
    edge: float = 0.02,
    opacity: float = 1.0,
) -> None:
    """Paint an ellipse over an edge that is `edge` wide."""
    rows, columns = grid(len(picture))
    distance = np.sqrt(((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2)
    share = np.clip(np.float32(0.5) - (distance - 1) * np.float32(min(radii) / edge), 0, 1) * np.float32(opacity)
    picture += share * (np.float32(value) - picture)


def cloud(
    rng: np.random.Generator, picture: np.ndarray, centre: tuple[float, float], radius: float, opacity: float
) -> None:
    """Paint a cloudy patch that hides up to `opacity` of what is behind it."""
    rows, columns = grid(len(picture))
    squared = ((rows - centre[0]) / radius) ** 2 + ((columns - centre[1]) / radius) ** 2
    rough = cv2.resize(rng.random((5, 5), dtype=np.float32), picture.shape[::-1], interpolation=cv2.INTER_CUBIC)
    share = np.exp(-squared).astype(np.float32) * np.clip(0.7 + 0.6 * rough, 0, 1) * np.float32(opacity)
    picture += share * (np.float32(_TISSUE) - picture)


def write_picture(path: Path, picture: np.ndarray, rng: np.random.Generator, *, noise: float = 0.03) -> None:
    """Add noise and write a grey PNG of 8 bits; folders are made."""
    noisy = picture + np.float32(noise) * rng.standard_normal(picture.shape, dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(".png", np.clip(np.rint(noisy * 255), 0, 255).astype(np.uint8))
    path.write_bytes(data.tobytes())


def _scaled(rng: np.random.Generator, radii: tuple[float, float]) -> tuple[float, float]:
    factors = rng.uniform(0.92, 1.08, size=2)
    return radii[0] * float(factors[0]), radii[1] * float(factors[1])
