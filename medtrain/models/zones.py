"""A network whose head looks at the region of each zone: six lung zones, or any others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.encoders import Encoder
from medtrain.models.freezing import FreezableModel
from medtrain.models.instances import EncoderSettings
from medtrain.models.lung_zones import lung_zone
from medtrain.registry import Range, Spread, closest, register

Box = tuple[float, float, float, float]
"""Top, left, bottom, right, as shares of the image's height and width."""

ZonePooling = Literal["box", "attention"]

_OUTSIDE = 0.01
_ATTENTION_DIM = 128


@register(
    "model",
    "zones",
    runtime=("in_channels", "image_size", "view_names", "max_instances", "num_outputs", "zone_names"),
    tags=("images", "2d", "zones"),
)
class ZoneModel(FreezableModel):
    """An image encoder and, for each zone, the mean of the feature map over the zone's own region and a linear head.

    By default the six zones of the Brixia score: three rows and two columns, the patient's right lung (A, B, C from
    the top) at the left of the image, the left lung (D, E, F) at its right; zones named by side and level
    (`right_sup`, `left_mid`, `right_lower`, ...) are known too. Others need `zone_boxes` or `zone_grid`.

    Args:
        in_channels: Image channels C.
        image_size: (H, W).
        view_names: Names of the views.
        max_instances: Most instances of a bag; None without bags.
        num_outputs: Z x K.
        zone_names: Z names.
        image_encoder: Of the images.
        drop_rate: Dropout of each zone's features.
        pooling: How a transformer's tokens become the vector of the whole image, for `context`; null = the
            architecture's own.
        zone_boxes: Region of each zone by its name, [top, left, bottom, right] as shares of the image.
        zone_grid: Rows and columns of equal regions, zones in reading order.
        zone_pooling: `box` is the mean over the region; `attention` a learned weighting of places that begins near
            that mean, and may come to look beyond the region.
        shared_head: One linear head for all zones, or one for each.
        context: Show each zone's head also the vector of the whole image.

    Raises:
        UsageError: The zones have no known regions, or a setting does not fit.
    """

    inputs: tuple[str, ...] = ("image",)

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: tuple[int, ...],
        view_names: tuple[str, ...],
        max_instances: int | None,
        num_outputs: int,
        zone_names: tuple[str, ...],
        image_encoder: Annotated[EncoderSettings, Spread()] = EncoderSettings(),  # noqa: B008 - frozen
        zone_boxes: dict[str, tuple[float, float, float, float]] | None = None,
        zone_grid: tuple[Annotated[int, Range(ge=1)], Annotated[int, Range(ge=1)]] | None = None,
        zone_pooling: ZonePooling = "box",
        shared_head: bool = False,
        context: bool = False,
    ) -> None:
        super().__init__()
        if view_names or max_instances is not None:
            raise UsageError("model=zones takes one image for each sample", hint="use model=multiview or model=mil")
        if len(image_size) == 3:
            raise UsageError("model=zones takes 2-D images, and the data have volumes", hint="use model=cnn")
        boxes = zone_regions(zone_names, zone_boxes, zone_grid)
        self.encoder = dataclasses.replace(image_encoder, drop_rate=0.0).build(in_channels, image_size)
        self.has_context = context
        self.pool = RegionPooling(boxes, self.encoder, zone_pooling)
        self.dropout = nn.Dropout(image_encoder.drop_rate)
        assert num_outputs % len(zone_names) == 0, f"{num_outputs} outputs for {len(zone_names)} zones"
        self.head = ZoneLinear(
            len(zone_names),
            self.encoder.num_features * (2 if context else 1),
            num_outputs // len(zone_names),
            shared=shared_head,
        )
        image_encoder.finish(self, [self.encoder])

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, Z, K] of images [B, C, H, W]."""
        feature_map, vector = self.encoder.features_and_vector(image)
        regions = self.pool(feature_map)
        # what the architecture does after its mean, such as a norm, it does to the mean of a region too
        zones = self.encoder.pool(regions.flatten(0, 1)[..., None, None]).unflatten(0, regions.shape[:2])
        if self.has_context:
            zones = torch.cat([zones, vector.unsqueeze(1).expand(-1, zones.shape[1], -1)], 2)
        return self.head(self.dropout(zones))

    def feature_layer(self) -> nn.Module:
        """The module whose output is the feature map."""
        layer = getattr(self.encoder, "map", None)
        return layer if isinstance(layer, nn.Module) else self.encoder.feature_layer()


class RegionPooling(nn.Module):
    """The mean of a feature map over boxes, cells on a border counting for the share that lies inside.

    With attention the mean is weighted by softmax(w_z . tanh(V f) + log(share + 0.01)): w begins at 0, so that the
    weights begin at the shares and a cell outside of the box can be looked at where it is worth it.

    Args:
        boxes: Of each zone.
        encoder: Whose map is pooled.
        pooling: `box` or `attention`.
    """

    shares: Tensor

    def __init__(self, boxes: Sequence[Box], encoder: Encoder, pooling: ZonePooling) -> None:
        super().__init__()
        shares = box_shares(boxes, encoder.map_size)
        if pooling == "box":
            self.register_buffer("shares", shares / shares.sum(1, keepdim=True), persistent=False)
            self.hidden: nn.Linear | None = None
            return
        self.register_buffer("shares", (shares + _OUTSIDE).log(), persistent=False)
        self.hidden = nn.Linear(encoder.map_features, _ATTENTION_DIM)
        self.score = nn.Linear(_ATTENTION_DIM, len(boxes), bias=False)  # one for all places cancels in the softmax
        nn.init.zeros_(self.score.weight)

    def forward(self, feature_map: Tensor) -> Tensor:
        """[B, F, h, w] to [B, Z, F]."""
        cells = feature_map.flatten(2).transpose(1, 2)  # [B, hw, F]
        return self.weights(cells).to(cells.dtype) @ cells

    def weights(self, cells: Tensor) -> Tensor:
        """Weights [B or 1, Z, hw] of cells [B, hw, F], 1 in sum."""
        if self.hidden is None:
            return self.shares.unsqueeze(0)
        scores = self.score(self.hidden(cells).tanh()).transpose(1, 2).float()
        return (scores + self.shares).softmax(2)


class ZoneLinear(nn.Module):
    """A linear layer for each zone, or the same for all.

    Args:
        zones: Z.
        in_dim: Features F of each zone.
        outputs: Logits K of each zone.
        shared: Whether all zones have the same layer.
    """

    def __init__(self, zones: int, in_dim: int, outputs: int, *, shared: bool) -> None:
        super().__init__()
        count = 1 if shared else zones
        bound = 1 / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.empty(count, in_dim, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(count, outputs))

    def forward(self, features: Tensor) -> Tensor:
        """[B, Z, F] to [B, Z, K]."""
        return (features.unsqueeze(2) @ self.weight).squeeze(2) + self.bias


def zone_regions(
    zone_names: Sequence[str],
    zone_boxes: Mapping[str, Box] | None = None,
    zone_grid: tuple[int, int] | None = None,
) -> list[Box]:
    """The region of each zone.

    Args:
        zone_names: Z names.
        zone_boxes: By name.
        zone_grid: Rows and columns, zones in reading order.

    Raises:
        UsageError: The regions do not fit the zones, or there are none for these names.
    """
    if zone_boxes is not None and zone_grid is not None:
        raise UsageError(
            "model.zone_boxes and model.zone_grid both say where the zones are", hint="leave one of them null"
        )
    if zone_boxes is not None:
        return _named_boxes(zone_names, zone_boxes)
    if zone_grid is not None:
        rows, columns = zone_grid
        if rows * columns != len(zone_names):
            raise UsageError(
                f"model.zone_grid=[{rows}, {columns}] has {rows * columns} regions, and the data have "
                f"{len(zone_names)} zones: {', '.join(zone_names)}",
                hint="change the grid, or give each zone its region: `model.zone_boxes={...}`",
            )
        return [_cell(row, column, rows, columns) for row in range(rows) for column in range(columns)]
    places = [lung_zone(name) for name in zone_names]
    known = [_cell(*place, 3, 2) for place in places if place is not None]
    if len(set(known)) < len(zone_names):
        raise UsageError(
            f"there are no regions for zones with these names: {', '.join(zone_names)}",
            hint=f"set for example `model.zone_boxes={{{zone_names[0]}: [0, 0, 0.33, 0.5], ...}}` (top, left, bottom, "
            "right as shares of the image) or `model.zone_grid=[rows,columns]`",
        )
    return known


def box_shares(boxes: Sequence[Box], map_size: Sequence[int]) -> Tensor:
    """The share of each cell of a map that lies in each box, [Z, h * w].

    Args:
        boxes: Top, left, bottom, right as shares of the image.
        map_size: (h, w).
    """
    height, width = map_size
    tops, lefts, bottoms, rights = torch.tensor(boxes, dtype=torch.float64).T.unsqueeze(2)
    inside_rows = _overlap(tops * height, bottoms * height, height)
    inside_columns = _overlap(lefts * width, rights * width, width)
    return (inside_rows.unsqueeze(2) * inside_columns.unsqueeze(1)).flatten(1).float()


def _overlap(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """How much of each unit cell [0, 1], [1, 2], ... lies between two numbers [Z, 1]."""
    starts = torch.arange(cells, dtype=torch.float64)
    return (torch.minimum(high, starts + 1) - torch.maximum(low, starts)).clamp(min=0)


def _cell(row: int, column: int, rows: int, columns: int) -> Box:
    return row / rows, column / columns, (row + 1) / rows, (column + 1) / columns


def _named_boxes(zone_names: Sequence[str], zone_boxes: Mapping[str, Box]) -> list[Box]:
    missing = [zone for zone in zone_names if zone not in zone_boxes]
    unknown = [zone for zone in zone_boxes if zone not in zone_names]
    if missing or unknown:
        near = closest(unknown[0], zone_names) if unknown else None
        raise UsageError(
            f"model.zone_boxes must have exactly the zones of the data: {', '.join(zone_names)}; "
            + "; ".join(
                f"{what}: {', '.join(found)}" for what, found in (("missing", missing), ("unknown", unknown)) if found
            ),
            hint=f"did you mean `{near}` for `{unknown[0]}`?" if near else None,
        )
    for zone, (top, left, bottom, right) in zone_boxes.items():
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
            raise UsageError(
                f"model.zone_boxes.{zone}=[{top}, {left}, {bottom}, {right}] is no region of an image",
                hint="write [top, left, bottom, right] between 0 and 1, e.g. [0, 0, 0.33, 0.5]",
            )
    return [tuple(zone_boxes[zone]) for zone in zone_names]  # type: ignore[misc]
