"""A stand-in for a trained run: the network knows two intensity thresholds, so its answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from medtrain.data.plan import ChannelNormalization, Plan
from medtrain.engine.precision import Precision
from medtrain.inference.sliding_window import SlidingWindow
from medtrain.losses.dice import DiceCELoss
from medtrain.tasks.segmentation import Segmentation

CPU = torch.device("cpu")
LABEL_VALUES = (0, 2, 7)
ORIENTED = np.array([[0, -0.8, 0, 40], [-1.5, 0, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]], dtype=float)
"""File axes point to posterior, left, superior, with three different voxel sizes."""


class Thresholds(nn.Module):
    """Class 1 above 0.5 and class 2 above 1.5 in the last channel; counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        value = x[:, -1:]
        return torch.cat([torch.zeros_like(value), value - 0.5, 2 * (value - 1.0)], dim=1)


def plan(channels: int = 1, **changes: Any) -> Plan:
    """A plan for scans at `ORIENTED`'s own spacing (D, H, W), not normalised."""
    values: dict[str, Any] = {
        "spatial_dims": 3,
        "spacing": (2.5, 1.5, 0.8),
        "patch_size": (8, 8, 8),
        "batch_size": 2,
        "channels": (4, 8),
        "strides": ((1, 1, 1), (2, 2, 2)),
        "kernel_sizes": ((3, 3, 3), (3, 3, 3)),
        "normalization": (ChannelNormalization("none"),) * channels,
        "in_channels": channels,
        "num_classes": 3,
        "class_names": ("background", "liver", "cancer"),
        "label_values": LABEL_VALUES,
        "ignore_index": None,
        "channel_names": ("CT", "T1", "T2", "FLAIR")[:channels],
        "median_shape": (12, 12, 12),
    }
    return Plan(**{**values, **changes})


def run(channels: int = 1, *, inference: SlidingWindow | None = None, **changes: Any) -> Any:
    """What `load_run` gives, as far as a predictor uses it."""
    its_plan = plan(channels, **changes)
    task = Segmentation(
        loss=DiceCELoss(num_classes=3), inference=inference or SlidingWindow(mirror=False), plan=its_plan, device=CPU
    )
    return SimpleNamespace(
        model=Thresholds().eval(),
        task=task,
        plan=its_plan,
        run_dir=Path("20261120-11-abcd"),
        step=100,
        weights="ema",
        device=CPU,
        precision=Precision("fp32", CPU),
    )


def write_scan(path: Path, voxels: np.ndarray, affine: np.ndarray = ORIENTED) -> np.ndarray:
    """Write voxels in file order and return the label values [x, y, z] that `Thresholds` gives them."""
    file = nib.Nifti1Image(voxels, affine)
    file.header.set_xyzt_units("mm")
    nib.save(file, path)
    last = voxels[..., -1] if voxels.ndim == 4 else voxels
    return np.array(LABEL_VALUES)[(last > 0.5).astype(int) + (last > 1.5)]


def voxels(seed: int = 0, shape: Sequence[int] = (11, 9, 13)) -> np.ndarray:
    """Whole numbers 0, 1 and 2 in blobs; int16 [x, y, z]."""
    values = np.random.default_rng(seed).integers(0, 3, shape).astype(np.int16)
    values[0, 0, 0] = values[-1, -1, -1] = 1  # keeps the non-zero box the whole scan
    return values


def read(path: Path) -> np.ndarray:
    """The voxels of a file as stored."""
    return np.asanyarray(nib.load(path).dataobj)
