"""Time to resample one CT case 100 x 256 x 256 -> 150 x 320 x 320 with 4 labels, one thread, each in its own process.

medtrain's cubic splines and labels against nnU-Net's (`resample_data_or_seg`, order 3 and its labels), and the image
alone against scipy's zoom of order 3, MONAI's Resize and torch's trilinear interpolation. Before the times the results
are compared: the largest and the root mean square difference of the image, in HU, to scipy's cubic zoom in float64,
both clipped to the range of the scan as nnU-Net does, and the share of voxels whose label is the one nnU-Net gives.

    python scripts/bench_resample.py [--rounds 5] [--peers-python PYTHON]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import forget_peak, make_ct_case, serve, spread, start

SHAPE, TARGET = (100, 256, 256), (150, 320, 320)
LABELS = 4

Work = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray | None]]


def medtrain_work() -> Work:
    """As `medtrain data prepare` does, but kept in float32 for the comparison."""
    from medtrain.data.geometry import resample_image, resample_label

    def work(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return resample_image(image[None], TARGET)[0], resample_label(label, TARGET)

    return work


def nnunet_work() -> Work:
    """nnU-Net's default for images and labels."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg

    def work(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        resampled = resample_data_or_seg(image[None].astype(np.float32), TARGET, order=3)
        return resampled[0], resample_data_or_seg(label[None].astype(np.int8), TARGET, is_seg=True, order=1)[0]

    return work


def scipy_work() -> Work:
    """The definition: cubic splines, the nearest value outside, grids that share their borders."""
    from scipy import ndimage

    def work(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        zoom = [n / m for n, m in zip(TARGET, SHAPE)]
        return ndimage.zoom(image.astype(np.float64), zoom, order=3, mode="nearest", grid_mode=True), None

    return work


def monai_work() -> Work:
    """MONAI, by linear interpolation."""
    import torch
    from monai.transforms import Resize

    resize = Resize(TARGET, mode="trilinear")

    def work(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return np.asarray(resize(torch.from_numpy(image[None].astype(np.float32))))[0], None

    return work


def torch_work() -> Work:
    """Linear interpolation: what a lower order would take."""
    import torch
    import torch.nn.functional as F

    def work(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        source = torch.from_numpy(image[None, None].astype(np.float32))
        return F.interpolate(source, size=TARGET, mode="trilinear", align_corners=False)[0, 0].numpy(), None

    return work


CONTESTANTS: dict[str, tuple[str, Callable[[], Work]]] = {
    "medtrain": ("cubic, labels", medtrain_work),
    "nnU-Net": ("cubic, labels", nnunet_work),
    "scipy": ("cubic, no labels", scipy_work),
    "MONAI": ("linear, no labels", monai_work),
    "torch": ("linear, no labels", torch_work),
}


def child(name: str, folder: Path) -> None:
    """A contestant: keeps its result for the comparison, then works as often as asked for."""
    with np.load(folder / "case.npz") as content:
        image, label = content["image"], content["label"]
    work = CONTESTANTS[name][1]()
    forget_peak()
    resampled, classes = work(image, label)
    assert resampled.shape == TARGET, resampled.shape
    np.save(folder / f"{name}_image.npy", resampled)
    if classes is not None:
        np.save(folder / f"{name}_label.npy", classes)

    def once(_: Any) -> dict[str, float]:
        work(image, label)
        return {}

    serve(once)


def main() -> None:
    """Parse the command line, compare results, then times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(CONTESTANTS))
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that has nnunetv2 and monai")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        import torch

        torch.set_num_threads(1)
        child(arguments.child[0], Path(arguments.child[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        image, label = make_ct_case(0, SHAPE, classes=LABELS + 1)
        np.savez(folder / "case.npz", image=image, label=label)
        contestants = []
        for name in arguments.only:
            python = arguments.peers_python if name in ("nnU-Net", "MONAI") else sys.executable
            contestant = start(name, [python, __file__, "--child", name, str(folder)])
            if contestant is not None:
                contestants.append(contestant)
        rounds: dict[str, list[dict[str, Any]]] = {contestant.title: [] for contestant in contestants}
        for _ in range(arguments.rounds):
            for contestant in contestants:
                rounds[contestant.title].append(contestant.ask(None))
        print(
            f"\n{' x '.join(map(str, SHAPE))} -> {' x '.join(map(str, TARGET))}, one thread, {arguments.rounds} rounds"
        )
        exact = folder / "scipy_image.npy"
        reference = np.load(exact) if exact.is_file() else None
        print(
            f"{'':10}{'what':18}{'s':>26}{'s of CPU':>26}{'ratio':>8}{'MB':>7}{'max diff':>10}{'rms':>9}{'labels':>9}"
        )
        ours = 0.0
        for contestant in contestants:
            name = contestant.title
            wall, cpu = ([r[key] for r in rounds[name]] for key in ("wall", "cpu"))
            ours = ours or statistics.median(cpu)
            error = ""
            if reference is not None:
                clipped = np.clip(np.load(folder / f"{name}_image.npy"), image.min(), image.max())
                difference = np.abs(clipped - np.clip(reference, image.min(), image.max()))
                error = f"{difference.max():10.2g}{np.sqrt(np.square(difference).mean()):9.2g}"
            both = [folder / f"{other}_label.npy" for other in (name, "nnU-Net")]
            same = np.mean(np.load(both[0]) == np.load(both[1])) if all(p.is_file() for p in both) else None
            print(
                f"{name:10}{CONTESTANTS[name][0]:18}{spread(wall):>26}{spread(cpu):>26}"
                f"{statistics.median(cpu) / ours:8.2f}{max(r['peak'] for r in rounds[name]):7.0f}{error}"
                + ("" if same is None else f"{same:9.5f}")
            )
            contestant.close()


if __name__ == "__main__":
    main()
