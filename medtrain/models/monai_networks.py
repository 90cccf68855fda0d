"""MONAI's convolutional networks for segmentation, as registered models; MONAI is imported when one is built."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from torch import Tensor

from medtrain.errors import MissingExtraError, UsageError
from medtrain.models.layers import LEAKY_SLOPE, NormName
from medtrain.models.padding import SegmentationNet
from medtrain.models.stages import StageWidths, UNetSettings
from medtrain.registry import Range, Spread, register

VNET_WIDTH = 16
"""Features of V-Net at full resolution."""


def monai_network(model: str, module: str, cls: str, *, packages: tuple[str, ...] = ()) -> Any:
    """A network class of MONAI.

    Args:
        model: Name of the registered model, for the message.
        module: Below `monai.networks.nets`.
        cls: Name of the class.
        packages: What MONAI needs besides for this network, and imports only when it is used.

    Raises:
        MissingExtraError: MONAI, or one of the packages, is not installed.
    """
    for package in ("monai", *packages):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(package, extra="monai", purpose=f"model={model}") from error
    return getattr(importlib.import_module(f"monai.networks.nets.{module}"), cls)


def monai_norm(norm: NormName) -> tuple[str, dict[str, Any]]:
    """A normalisation with scale and shift as MONAI takes it; `group` has 8 groups, as in `norm_layer`."""
    options: dict[NormName, dict[str, Any]] = {"instance": {"affine": True}, "batch": {}, "group": {"num_groups": 8}}
    return norm, options[norm]


def check_groups(norm: NormName, *widths: int) -> None:
    """Refuse widths that 8 groups do not divide.

    Raises:
        UsageError: With the width.
    """
    for width in widths:
        if norm == "group" and width % 8:
            raise UsageError(
                f"model.norm=group needs channels divisible by 8, got {width}",
                hint="choose other channels, or model.norm=instance",
            )


@register("model", "dynunet", runtime=("spatial_dims", "in_channels", "num_outputs"), tags=("2d", "3d", "segmentation"))
class DynUNet(SegmentationNet):
    """MONAI's DynUNet: its nnU-Net, plain or with residual blocks. Needs the extra `monai`.

    With deep supervision the training forward returns a list of logits, finest first, each at its own resolution
    (MONAI would up-sample and stack them); the coarsest decoder resolution is left out, as in `unet`.

    F. Isensee et al., nnU-Net, Nature Methods 2021; https://docs.monai.io/en/stable/networks.html#dynunet

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels C.
        num_outputs: Logit channels K.
        settings: Of stages and layers.
        residual: Residual blocks instead of plain ones.
        dropout: Probability of zeroing a feature after each convolution.

    Raises:
        MissingExtraError: MONAI is not installed.
        UsageError: The stages contradict each other, or are fewer than three.
    """

    def __init__(
        self,
        *,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        num_outputs: int,
        settings: Annotated[UNetSettings, Spread()] = UNetSettings(),  # noqa: B008 - frozen
        residual: bool = False,
    ) -> None:
        stages = settings.stages("dynunet", spatial_dims)
        if len(stages) < 3:
            raise UsageError(
                f"dynunet needs three stages or more, got {len(stages)}", hint="use model=unet, or a larger patch"
            )
        check_groups(settings.norm, *stages.channels)
        super().__init__(spatial_dims=spatial_dims, in_channels=in_channels, divisor=stages.divisor, norm=settings.norm)
        self.deep_supervision = settings.deep_supervision
        self.coarser = stages.supervised - 1 if self.deep_supervision else 0
        self.network = monai_network("dynunet", "dynunet", "DynUNet")(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=num_outputs,
            kernel_size=stages.kernels,
            strides=stages.strides,
            upsample_kernel_size=stages.strides[1:],
            filters=stages.channels,
            dropout=settings.dropout or None,
            norm_name=monai_norm(settings.norm),
            act_name=("leakyrelu", {"inplace": True, "negative_slope": LEAKY_SLOPE}),
            deep_supervision=self.coarser > 0,
            deep_supr_num=max(1, self.coarser),
            res_block=residual,
        )
        # the same layers once more, nested: they would be in the state twice, and predict coarsely in eval mode too
        del self.network.skip_layers

    def logits(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits of an image that fits, or a list of them, finest first (training, deep supervision)."""
        network = self.network
        skips = [network.input_block(image)]
        for down in network.downsamples:
            skips.append(down(skips[-1]))
        features = network.bottleneck(skips[-1])
        coarse: list[Tensor] = []
        for up, level in zip(network.upsamples, range(len(skips) - 1, -1, -1)):
            features = up(features, skips[level])
            if self.training and 1 <= level <= self.coarser:
                coarse.insert(0, network.deep_supervision_heads[level - 1](features))
        finest = network.output_block(features)
        return [finest, *coarse] if self.training and self.deep_supervision else finest


@register(
    "model", "segresnet", runtime=("spatial_dims", "in_channels", "num_outputs"), tags=("2d", "3d", "segmentation")
)
class SegResNet(SegmentationNet):
    """MONAI's SegResNet: residual blocks with group normalisation and a light decoder. Needs the extra `monai`.

    A. Myronenko, 3D MRI brain tumor segmentation using autoencoder regularization, BrainLes 2018 (without the
    autoencoder); https://docs.monai.io/en/stable/networks.html#segresnet

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels C.
        num_outputs: Logit channels K.
        width: Feature channels at full resolution, doubled from stage to stage; the paper has 32.
        blocks_down: Blocks of each encoder stage.
        blocks_up: Blocks of each decoder stage, one entry fewer.
        norm: Statistics per sample and 8 groups (group), per sample and channel (instance), or per channel (batch).
        dropout: Probability of zeroing a feature channel of the input's features.
        upsampling: Linear (nontrainable), transposed convolution (deconv) or pixelshuffle.

    Raises:
        MissingExtraError: MONAI is not installed.
        UsageError: The stages contradict each other.
    """

    def __init__(
        self,
        *,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        num_outputs: int,
        width: Annotated[int, Range(ge=8)] = 32,
        blocks_down: tuple[Annotated[int, Range(ge=1)], ...] = (1, 2, 2, 4),
        blocks_up: tuple[Annotated[int, Range(ge=1)], ...] = (1, 1, 1),
        norm: NormName = "group",
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        upsampling: Literal["nontrainable", "deconv", "pixelshuffle"] = "nontrainable",
    ) -> None:
        if len(blocks_up) != len(blocks_down) - 1 or not blocks_up:
            raise UsageError(
                f"model.blocks_up needs one entry fewer than model.blocks_down, got {len(blocks_up)} and "
                f"{len(blocks_down)}",
                hint="e.g. model.blocks_down=[1,2,2,4] model.blocks_up=[1,1,1]",
            )
        check_groups(norm, width)
        divisor = (2 ** (len(blocks_down) - 1),) * spatial_dims
        super().__init__(spatial_dims=spatial_dims, in_channels=in_channels, divisor=divisor, norm=norm)
        self.network = monai_network("segresnet", "segresnet", "SegResNet")(
            spatial_dims=spatial_dims,
            init_filters=width,
            in_channels=in_channels,
            out_channels=num_outputs,
            dropout_prob=dropout or None,
            norm=monai_norm(norm),
            blocks_down=tuple(blocks_down),
            blocks_up=tuple(blocks_up),
            upsample_mode=upsampling,
        )

    @classmethod
    def fixed_strides(cls, settings: Mapping[str, Any]) -> tuple[int, ...]:
        """See the base class."""
        return (1,) + (2,) * (len(settings["blocks_down"]) - 1)

    def logits(self, image: Tensor) -> Tensor:
        """Logits of an image that fits."""
        return self.network(image)


@register(
    "model", "attention_unet", runtime=("spatial_dims", "in_channels", "num_outputs"), tags=("2d", "3d", "segmentation")
)
class AttentionUNet(SegmentationNet):
    """MONAI's Attention U-Net: gates decide which features of a skip are passed on. Needs the extra `monai`.

    Its convolutions are followed by batch normalisation (instance normalisation where skips are merged).

    O. Oktay et al., Attention U-Net, MIDL 2018; https://docs.monai.io/en/stable/networks.html#attentionunet

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels C.
        num_outputs: Logit channels K.
        settings: Of stages.
        kernel_size: Odd kernel of the convolutions of the encoder.
        dropout: Probability of zeroing a feature after each convolution.

    Raises:
        MissingExtraError: MONAI is not installed.
        UsageError: The stages contradict each other.
    """

    def __init__(
        self,
        *,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        num_outputs: int,
        settings: Annotated[StageWidths, Spread()] = StageWidths(),  # noqa: B008 - frozen
        kernel_size: Literal[3, 5, 7] = 3,
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
    ) -> None:
        kernels = None if settings.channels is None else (kernel_size,) * len(settings.channels)
        stages = settings.check("attention_unet", spatial_dims, kernels)
        if min(stages.channels) < 2:
            raise UsageError("attention_unet needs two channels or more per stage")
        super().__init__(spatial_dims=spatial_dims, in_channels=in_channels, divisor=stages.divisor, norm="batch")
        self.network = monai_network("attention_unet", "attentionunet", "AttentionUnet")(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=num_outputs,
            channels=stages.channels,
            strides=stages.strides[1:],
            kernel_size=kernel_size,
            dropout=dropout,
        )

    def logits(self, image: Tensor) -> Tensor:
        """Logits of an image that fits."""
        return self.network(image)


@register("model", "vnet", runtime=("spatial_dims", "in_channels", "num_outputs"), tags=("2d", "3d", "segmentation"))
class VNet(SegmentationNet):
    """MONAI's V-Net: residual stages of 5-voxel convolutions, batch normalisation and ELU. Needs the extra `monai`.

    F. Milletari et al., V-Net, 3DV 2016; https://docs.monai.io/en/stable/networks.html#vnet

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: Image channels C: 1, 2, 4, 8 or 16.
        num_outputs: Logit channels K.
        activation: Of every stage.
        dropout: Probability of zeroing a feature channel in the coarser stages.
        bias: Whether convolutions that a norm follows have a bias.

    Raises:
        MissingExtraError: MONAI is not installed.
        UsageError: The image's channels do not divide 16.
    """

    def __init__(
        self,
        *,
        spatial_dims: Literal[2, 3],
        in_channels: int,
        num_outputs: int,
        activation: Literal["elu", "relu", "prelu"] = "elu",
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.5,
        bias: bool = False,
    ) -> None:
        if VNET_WIDTH % in_channels:
            raise UsageError(
                f"vnet adds the image to its {VNET_WIDTH} features, which images of {in_channels} channels do not fit",
                hint="use another model, such as model=unet",
            )
        divisor = (16,) * spatial_dims
        super().__init__(spatial_dims=spatial_dims, in_channels=in_channels, divisor=divisor, norm="batch")
        self.network = monai_network("vnet", "vnet", "VNet")(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=num_outputs,
            act=activation if activation == "prelu" else (activation, {"inplace": True}),
            dropout_prob_down=dropout or None,
            dropout_prob_up=(dropout or None, dropout),
            dropout_dim=spatial_dims,
            bias=bias,
        )

    @classmethod
    def fixed_strides(cls, settings: Mapping[str, Any]) -> tuple[int, ...]:
        """See the base class."""
        return (1, 2, 2, 2, 2)

    def logits(self, image: Tensor) -> Tensor:
        """Logits of an image that fits."""
        return self.network(image)
