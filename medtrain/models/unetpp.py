"""UNet++: a U-Net whose skips are filled with decoders of every depth, in 2-D and 3-D."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from medtrain.models.layers import UpConv, conv, init_he
from medtrain.models.padding import SegmentationNet
from medtrain.models.stages import UNetSettings
from medtrain.models.unet import conv_row
from medtrain.registry import Range, Spread, register


@register("model", "unetpp", runtime=("spatial_dims", "in_channels", "num_outputs"), tags=("2d", "3d", "segmentation"))
class UNetPlusPlus(SegmentationNet):
    """A U-Net with nested, dense skips: the nodes X[i, j] of resolution i and decoder depth j.

    X[i, 0] is the encoder; X[i, j] is a row of convolutions over X[i, 0..j-1] and the up-sampled X[i+1, j-1]. With
    deep supervision the training forward returns the logits of the nodes X[0, j] at full resolution, the deepest
    first; in eval mode those of the deepest alone. Images are [B, C, H, W] or [B, C, D, H, W].

    Z. Zhou et al., UNet++, IEEE Transactions on Medical Imaging 2020; the norm and leaky ReLU are those of `unet`.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels C.
        num_outputs: Logit channels K.
        settings: Of stages and layers.
        convs_per_stage: Convolutions in each node.
        deep_supervision: Also predict from the shallower decoders while training.

    Raises:
        UsageError: The stages contradict each other.
    """

    def __init__(
        self,
        *,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        num_outputs: int,
        settings: Annotated[UNetSettings, Spread()] = UNetSettings(),  # noqa: B008 - frozen
        convs_per_stage: Annotated[int, Range(ge=1)] = 2,
    ) -> None:
        stages = settings.stages("unetpp", spatial_dims)
        norm, dropout = settings.norm, settings.dropout
        super().__init__(spatial_dims=spatial_dims, in_channels=in_channels, divisor=stages.divisor, norm=norm)
        self.deep_supervision = settings.deep_supervision
        widths, one = stages.channels, (1,) * spatial_dims
        self.depth = len(stages) - 1
        before = (in_channels, *widths)
        self.encoder = nn.ModuleList(
            conv_row(convs_per_stage, before[i], width, stages.kernels[i], stages.strides[i], norm, dropout)
            for i, width in enumerate(widths)
        )
        # up[j][i] and decoder[j][i] make X[i, j + 1]
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for depth in range(1, self.depth + 1):
            rows = range(self.depth + 1 - depth)
            self.up.append(nn.ModuleList(UpConv(widths[i + 1], widths[i], stages.strides[i + 1]) for i in rows))
            self.decoder.append(
                nn.ModuleList(
                    conv_row(convs_per_stage, (depth + 1) * widths[i], widths[i], stages.kernels[i], one, norm, dropout)
                    for i in rows
                )
            )
        heads = self.depth if self.deep_supervision else 1
        self.heads = nn.ModuleList(conv(spatial_dims, widths[0], num_outputs, one, one) for _ in range(heads))
        init_he(self)

    def logits(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image that fits, or a list of them, the deepest first (training, deep supervision)."""
        rows: list[list[Tensor]] = []
        features = image
        for stage in self.encoder:
            features = stage(features)
            rows.append([features])
        for ups, nodes in zip(self.up, self.decoder):
            # from fine to coarse: the row below still ends with X[i + 1, j - 1]
            for i, (up, node) in enumerate(zip(ups.children(), nodes.children())):
                rows[i].append(node(torch.cat((*rows[i], up(rows[i + 1][-1])), dim=1)))
            rows.pop()  # the coarsest row has no partner left
        finest = rows[0]
        if self.deep_supervision and self.training:
            return [head(finest[self.depth - k]) for k, head in enumerate(self.heads)]
        return self.heads[0](finest[self.depth])
