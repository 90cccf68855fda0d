"""What the benchmarks of data share: seeded data sets, contestants in processes of their own, and the table.

Every contestant is a child process, so its memory is its own; it answers each line on its standard input with one
line of JSON. The parent lets them work in turn within a round, so that a change of the machine's load meets all.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS"), "1")


class Contestant:
    """A child process that works on demand.

    Args:
        title: For the table.
        command: Starts it; it prints a line of JSON when it is ready.
        threads: What its libraries may use.
    """

    def __init__(self, title: str, command: Sequence[str], *, threads: int = 1) -> None:
        self.title = title
        environment = {**os.environ, **{name: str(threads) for name in ONE_THREAD}, "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.ready = self._answer()

    def ask(self, request: object) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):  # libraries print what they like
                return json.loads(line)
        assert self._process.stderr is not None
        said = self._process.stderr.read().strip().splitlines()
        raise RuntimeError(said[-1] if said else f"{self.title} ended with code {self._process.wait()}")


def start(title: str, command: Sequence[str], *, threads: int = 1) -> Contestant | None:
    """Start a contestant, or say in one line why it does not take part."""
    try:
        return Contestant(title, command, threads=threads)
    except (RuntimeError, OSError) as error:
        print(f"{title} takes no part: {error}")
        return None


def serve(work: Callable[[Any], Mapping[str, Any]], **ready: object) -> None:
    """The child's side: answer requests until the parent ends. `work` gets each request."""
    print(json.dumps({"ready": True, **ready}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        result = work(request)
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({**took, **memory(), **result}), flush=True)


def memory() -> dict[str, float]:
    """Resident memory of this process in MB: now, and the most since its start (or since `forget_peak`)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"rss": int(fields["VmRSS"].split()[0]) / 1e3, "peak": int(fields["VmHWM"].split()[0]) / 1e3}


def forget_peak() -> None:
    """Let the most memory be counted from here."""
    Path("/proc/self/clear_refs").write_text("5")


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):9.3g} ({min(values):.3g} .. {max(values):.3g})"


def make_ct_case(seed: int, shape: Sequence[int], *, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A CT-like case: a body with smooth organs, int16 HU with noise, and their labels; made from a seed.

    Returns:
        Image int16 [D, H, W] and label uint8 [D, H, W].
    """
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    d, h, w = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    coarse = rng.standard_normal([max(4, n // 16) for n in shape], dtype=np.float32)
    zoom = [n / m for n, m in zip(shape, coarse.shape)]
    waves = ndimage.zoom(coarse, zoom, order=1, mode="nearest", grid_mode=True)[: shape[0], : shape[1], : shape[2]]
    body = (h[:, None] / 0.75) ** 2 + (w[None] / 0.9) ** 2 < 1
    image = np.where(body[None], 40 + 30 * waves, -1000).astype(np.float32)
    label = np.zeros(shape, dtype=np.uint8)
    for index in range(1, classes):
        centre = rng.uniform(-0.4, 0.4, 3).astype(np.float32)
        radii = rng.uniform(0.15, 0.45, 3).astype(np.float32) / index
        axes = [((x - c) / r) ** 2 for x, c, r in zip((d, h, w), centre, radii)]
        organ = (axes[0][:, None, None] + axes[1][:, None] + axes[2] + 0.2 * waves) < 1
        label[organ] = index
        image[organ] = 60 + 40 * index + 10 * waves[organ]
    image += rng.normal(0, 15, shape).astype(np.float32)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16), label


def make_mr_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A hippocampus-shaped case: about 36 x 51 x 36 voxels of 1 mm, two touching structures.

    Returns:
        Image float32 [D, H, W] of whole numbers and label uint8 [D, H, W].
    """
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(31, 44)), int(rng.integers(45, 59)), int(rng.integers(31, 44)))
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    image = 120 + 60 * np.cos(3 * grid[0] + rng.uniform(0, 3)) * np.cos(2 * grid[2]) + 40 * grid[1]
    label = np.zeros(shape, dtype=np.uint8)
    inside = ((grid[0] / 0.45) ** 2 + (grid[1] / 0.75) ** 2 + (grid[2] / 0.4) ** 2) < 1
    label[inside], label[inside & (grid[1] < 0)] = 1, 2
    image[inside] += 60
    image = image + rng.normal(0, 12, shape)
    return np.clip(np.rint(image), 0, 400).astype(np.float32), label


def write_decathlon(
    root: Path,
    cases: Sequence[tuple[np.ndarray, np.ndarray]] | Callable[[int], tuple[np.ndarray, np.ndarray]],
    *,
    count: int,
    spacing: Sequence[float],
    channel: str,
    labels: Sequence[str],
) -> Path:
    """Write cases in the Decathlon's layout (NIfTI gz) unless they are there; return the folder."""
    import nibabel as nib

    if (root / "dataset.json").is_file():
        return root
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True, exist_ok=True)
    training = []
    affine = np.diag([*reversed(spacing), 1.0])
    for index in range(count):
        image, label = cases(index) if callable(cases) else cases[index]
        name = f"case_{index:03d}.nii.gz"
        for part, array in (("imagesTr", image), ("labelsTr", label)):
            nib.save(nib.Nifti1Image(np.ascontiguousarray(array.T), affine), root / part / name)
        training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    description = {
        "name": root.name,
        "modality": {"0": channel},
        "labels": {str(index): name for index, name in enumerate(("background", *labels))},
        "numTraining": count,
        "training": training,
        "test": [],
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root
