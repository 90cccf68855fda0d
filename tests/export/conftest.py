"""A trained run in miniature: what `engine.restore.LoadedRun` offers, around a network of a few hundred weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from medtrain import registry
from medtrain.data.plan import ChannelNormalization, Plan


class TinyNet(nn.Module):
    """Convolution, instance norm, down, up, skip: the operations of a U-Net, [B, 2, *S] -> [B, 3, *S]."""

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        conv, up, norm = {
            2: (nn.Conv2d, nn.ConvTranspose2d, nn.InstanceNorm2d),
            3: (nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d),
        }[spatial_dims]
        self.first = conv(2, 4, 3, padding=1)
        self.norm = norm(4, affine=True)
        self.down = conv(4, 6, 3, stride=2, padding=1)
        self.up = up(6, 4, 2, stride=2)
        self.head = conv(8, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image."""
        skip = nn.functional.leaky_relu(self.norm(self.first(image)), 0.01)
        return self.head(torch.cat((skip, self.up(self.down(skip))), dim=1))


@dataclass
class Run:
    """See medtrain.export.types.TrainedRun."""

    model: nn.Module
    plan: Plan
    run_dir: Path
    config: dict[str, Any]
    step: int = 1200
    weights: Literal["ema", "raw"] = "ema"
    metrics: dict[str, float] = field(default_factory=lambda: {"val/dice": 0.875})
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    task: Any = None


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Return a function that makes a run: `make_run(spatial_dims=3, model=None)`."""

    def make(*, spatial_dims: Literal[2, 3] = 3, model: nn.Module | None = None) -> Run:
        patch = (6, 8, 10)[-spatial_dims:]
        plan = Plan(
            spatial_dims=spatial_dims,
            spacing=(2.5, 0.75, 0.75)[-spatial_dims:],
            patch_size=patch,
            batch_size=2,
            channels=(4, 6),
            strides=((1,) * spatial_dims, (2,) * spatial_dims),
            kernel_sizes=((3,) * spatial_dims,) * 2,
            normalization=(
                ChannelNormalization("ct", lower=-100.0, upper=240.0, mean=80.5, std=39.25),
                ChannelNormalization("zscore", nonzero=True),
            ),
            in_channels=2,
            num_classes=3,
            class_names=("background", "liver", "cancer"),
            label_values=(0, 2, 7),
            ignore_index=None,
            channel_names=("CT", "PET"),
            median_shape=(40, 60, 60),
            reasons={},
        )
        config = {
            "seed": 5,
            "trainer": {"precision": "fp32"},
            "task": {"name": "segmentation"},
            "model": {"name": "unet"},
            "data": {"name": "msd", "fold": 1},
            "inference": {"name": "sliding_window", **registry.get("inference", "sliding_window").defaults()},
        }
        run_dir = tmp_path / "outputs" / "liver" / "20261120-09-3fa2"
        run_dir.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        network = TinyNet(spatial_dims) if model is None else model
        return Run(model=network.eval(), plan=plan, run_dir=run_dir, config=config)

    return make
