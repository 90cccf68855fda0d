"""An encoder of a few weights, in the place of real architectures where a test is about something else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medtrain.models.encoders import Encoder


class TinyEncoder(Encoder):
    """Two strided convolutions with a batch norm between them; its settings are kept for the test to look at."""

    def __init__(self, arch: str, *, in_channels: int, image_size: tuple[int, ...], **settings: Any) -> None:
        super().__init__(arch, in_channels, image_size)
        self.settings = settings
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[len(image_size)]
        norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[len(image_size)]
        self.layers = nn.Sequential(conv(in_channels, 8, 3, 2, 1), norm(8), nn.ReLU(), conv(8, 12, 3, 2, 1), nn.ReLU())
        self.map = nn.Identity()
        self.seen: list[int] = []
        self.num_features = self.map_features = 12
        self.map_size = tuple(-(-size // 4) for size in image_size)

    def features_and_vector(self, image: Tensor) -> tuple[Tensor, Tensor]:
        self.check_input(image)
        self.seen.append(len(image))
        feature_map = self.map(self.layers(image))
        return feature_map, self.pool(feature_map)

    def pool(self, feature_map: Tensor) -> Tensor:
        return feature_map.flatten(2).mean(2)

    def feature_layer(self) -> nn.Module:
        return self.map


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> type[TinyEncoder]:
    """Every image encoder of the test is a TinyEncoder, whatever `arch` says."""
    monkeypatch.setattr("medtrain.models.instances.build_encoder", TinyEncoder)
    torch.manual_seed(0)
    return TinyEncoder
