"""HD95 and NSD of one case of 256 x 256 x 160 voxels with 3 classes: medtrain, MONAI and surface-distance in one run.

All work in this process on one thread, in turn within each round. First the values are compared: medtrain's must equal
MONAI's, which has the same definitions; those of surface-distance (a mesh weighted by area) are printed beside them.
Inputs are what each takes: label maps for medtrain, one-hot tensors for MONAI, masks for surface-distance; making these
is not timed. Beside them: cropping plus the distance transform of the package edt, and medtrain's whole row of a case
(Dice, IoU, precision, recall, volumes and the three surface metrics). Printed are median and range of wall-clock and
CPU time over the rounds, and the ratio of medians to medtrain.

    python scripts/bench_metrics.py [--rounds 5] [--kind smooth|stray|noise ...] [--tolerance 1] [--spacing 1.5 0.8 0.8]

    smooth    Organs whose predicted surface is disturbed by a smooth field.
    stray     The same, and one voxel of 5000 has a class at random: specks all over the scan.
    noise     The same, with one voxel of 50.

Exit code 1 if values differ from MONAI's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import torch
from scipy import ndimage

from medtrain.metrics.cases import evaluate_case
from medtrain.metrics.surface import bounding_box, surface, surface_metrics

SHAPE = (160, 256, 256)
NAMES = ("background", "one", "two", "three")
STRAY = {"smooth": 0.0, "stray": 1 / 5000, "noise": 1 / 50}
WITHIN = 1e-4
"""MONAI works in float32."""

Scores = dict[str, tuple[float, float]]
"""HD95 in mm and NSD by class."""


def make_case(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A predicted and a true label map, uint8 [D, H, W]: an organ, one beside it and one inside it."""
    rng = np.random.default_rng(seed)
    d, h, w = (np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE)
    coarse = (8, 10, 10)

    def wave() -> np.ndarray:
        zoom = [n / m for n, m in zip(SHAPE, coarse)]
        return ndimage.zoom(rng.standard_normal(coarse, dtype=np.float32), zoom, order=1)

    label, prediction = np.zeros(SHAPE, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    organs = (
        ((0, -0.2, -0.2), (0.7, 0.55, 0.6)),
        ((0.1, 0.4, 0.4), (0.5, 0.3, 0.3)),
        ((-0.1, -0.2, -0.2), (0.25, 0.2, 0.2)),
    )
    for index, (centre, radii) in enumerate(organs, start=1):
        axes = [((x - c) / r) ** 2 for x, c, r in zip((d, h, w), centre, radii)]
        distance = axes[0][:, None, None] + axes[1][:, None] + axes[2] + 0.25 * wave()
        label[distance < 1] = index
        prediction[distance + 0.075 * wave() < 1] = index
    stray = rng.random(SHAPE, dtype=np.float32) < STRAY[kind]
    prediction[stray] = rng.integers(0, len(NAMES), int(stray.sum()))
    return prediction, label


def contestants(
    prediction: np.ndarray, label: np.ndarray, spacing: Sequence[float], tolerance: float
) -> dict[str, Callable[[], Scores]]:
    """What is measured, by name; those that are not installed are left out with a line."""
    masks = [(name, prediction == index, label == index) for index, name in enumerate(NAMES[1:], start=1)]

    def ours() -> Scores:
        box = bounding_box(prediction | label) or ()
        predicted, true = prediction[box], label[box]
        found = {}
        for index, name in enumerate(NAMES[1:], start=1):
            values = surface_metrics(predicted == index, true == index, spacing, nsd_tolerance_mm=tolerance)
            found[name] = (values["hd95_mm"], values["nsd"])
        return found

    def row() -> Scores:
        values = evaluate_case(prediction, label, spacing, NAMES, nsd_tolerance_mm=tolerance)
        return {name: (values[f"hd95_mm/{name}"], values[f"nsd/{name}"]) for name in NAMES[1:]}

    found: dict[str, Callable[[], Scores]] = {"medtrain": ours, "medtrain, all metrics": row}
    for name, make in (("MONAI", monai), ("surface-distance", surface_distance), ("crop + edt", crop_edt)):
        try:
            found[name] = make(masks, spacing, tolerance)
        except ImportError as error:
            print(f"{name} takes no part: {error}")
    return found


Masks = Sequence[tuple[str, np.ndarray, np.ndarray]]


def monai(masks: Masks, spacing: Sequence[float], tolerance: float) -> Callable[[], Scores]:
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    background = [~np.logical_or.reduce([item[place] for item in masks]) for place in (1, 2)]
    one_hot = [torch.from_numpy(np.stack([background[i - 1], *(item[i] for item in masks)]))[None] for i in (1, 2)]

    def work() -> Scores:
        hd95 = compute_hausdorff_distance(*one_hot, percentile=95, spacing=list(spacing))[0]
        nsd = compute_surface_dice(*one_hot, class_thresholds=[tolerance] * len(masks), spacing=list(spacing))[0]
        return {name: (float(hd95[i]), float(nsd[i])) for i, (name, _, _) in enumerate(masks)}

    return work


def surface_distance(masks: Masks, spacing: Sequence[float], tolerance: float) -> Callable[[], Scores]:
    from surface_distance import (
        compute_robust_hausdorff,
        compute_surface_dice_at_tolerance,
        compute_surface_distances,
    )

    def work() -> Scores:
        found = {}
        for name, predicted, true in masks:
            distances = compute_surface_distances(true, predicted, spacing)
            found[name] = (
                float(compute_robust_hausdorff(distances, 95)),
                float(compute_surface_dice_at_tolerance(distances, tolerance)),
            )
        return found

    return work


def crop_edt(masks: Masks, spacing: Sequence[float], tolerance: float) -> Callable[[], Scores]:
    import edt

    def work() -> Scores:
        found = {}
        for name, predicted, true in masks:
            box = bounding_box(predicted | true) or ()
            one, two = surface(predicted[box]), surface(true[box])
            sides = [edt.edt(~b, anisotropy=tuple(spacing), parallel=1)[a] for a, b in ((one, two), (two, one))]
            both = np.concatenate(sides)
            hd95 = max(np.percentile(side, 95) for side in sides)
            found[name] = (float(hd95), float((both <= tolerance * (1 + 1e-6)).mean()))
        return found

    return work


def compare_values(work: Mapping[str, Callable[[], Scores]]) -> bool:
    """Print the values of all and whether medtrain's equal MONAI's."""
    values = {name: run() for name, run in work.items()}
    print(f"{'':24}" + "".join(f"{f'HD95 {name}':>14}{f'NSD {name}':>12}" for name in NAMES[1:]))
    for title, scores in values.items():
        print(f"{title:24}" + "".join(f"{scores[n][0]:11.4f} mm{scores[n][1]:12.5f}" for n in NAMES[1:]))
    if "MONAI" not in values:
        return True
    gaps = [abs(a - b) for n in NAMES[1:] for a, b in zip(values["medtrain"][n], values["MONAI"][n])]
    same = max(gaps) <= WITHIN
    print(f"largest difference to MONAI: {max(gaps):.1e} ({'equal' if same else 'NOT EQUAL'} within {WITHIN:g})")
    return same


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):7.3f} ({min(values):.3f} .. {max(values):.3f})"


def measure(work: Mapping[str, Callable[[], Scores]], rounds: int) -> None:
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            took[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    ours = statistics.median(cpu for _, cpu in took["medtrain"])
    print(f"{'':24}{'wall, s':>26}{'CPU, s':>26}{'CPU ratio':>11}")
    for name, pairs in took.items():
        wall, cpu = ([pair[i] for pair in pairs] for i in (0, 1))
        print(f"{name:24}{spread(wall):>26}{spread(cpu):>26}{statistics.median(cpu) / ours:11.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kind", nargs="+", choices=list(STRAY), default=list(STRAY))
    parser.add_argument("--tolerance", type=float, default=1.0)
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.5, 0.8, 0.8), metavar=("D", "H", "W"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # MONAI warns of its own calls
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    same = True
    for kind in options.kind:
        size = " x ".join(map(str, SHAPE))
        print(
            f"\n{kind}: {size} voxels of {' x '.join(f'{s:g}' for s in options.spacing)} mm, {len(NAMES) - 1} classes"
        )
        work = contestants(*make_case(kind), tuple(options.spacing), options.tolerance)
        same = compare_values(work) and same
        measure(work, options.rounds)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
