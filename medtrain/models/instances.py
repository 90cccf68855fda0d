"""Encoding the images of samples that have several: bags of instances, named views, some of them absent."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medtrain.errors import MedtrainError, UsageError
from medtrain.models.encoders import Encoder, Pooling, build_encoder, finish, parse_arch
from medtrain.models.freezing import FreezableModel, Freeze
from medtrain.models.recompute import recomputed
from medtrain.registry import Format, Range


def parse_image_arch(text: str) -> str:
    """Check the name of an architecture: `cnn`, or one of timm's.

    Raises:
        ValueError: There is none of this name; names the nearest.
    """
    return text if text == "cnn" else parse_arch(text)


ImageArch = Annotated[str, Format(parse_image_arch, "resnet18, densenet121, vit_small_patch16_224, cnn")]
"""The name of an architecture: `cnn`, which takes volumes too, or one of timm's."""


class Encoded(NamedTuple):
    """Features of every image of a batch, zeros where an image is absent.

    Args:
        vectors: [B, N, F].
        maps: [B, N, map_features, *map_size], where asked for.
    """

    vectors: Tensor
    maps: Tensor | None


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """The settings of the image encoder that every model with one has.

    Args:
        arch: `cnn` (2-D and 3-D) or any architecture of timm (2-D), e.g. `resnet18`.
        weights: Weights of the encoder: a file (safetensors, pth), a folder in HuggingFace's style, `timm` for what
            timm's local cache has; null = random. Nothing is downloaded.
        min_matched: Share of the encoder's weights that the file must hold.
        drop_rate: Dropout of each image's features.
        drop_path_rate: Stochastic depth of the encoder's last block; null = the architecture's own.
        pooling: How a transformer's tokens become a vector: its class `token`, or their mean (`avg`); null = the
            architecture's own.
        small_input: A ResNet's stem as a 3x3 convolution without pooling, as MedMNIST trains at 28 pixels; null = for
            images under 64 pixels.
        freeze: What does not learn: `none`, `backbone` (the image encoder; only the rest learns: a linear probe), or
            names of parts as the parameter summary shows them, `*` for any text, e.g. [encoder.*.model.layer1].
        checkpoint_layers: Parts that save memory by computing their activations twice, e.g. [encoder.*.model.layer1].
    """

    arch: ImageArch = "resnet18"
    weights: str | None = None
    min_matched: Annotated[float, Range(ge=0, le=1)] = 0.9
    drop_rate: Annotated[float, Range(ge=0, lt=1)] = 0.0
    drop_path_rate: Annotated[float, Range(ge=0, lt=1)] | None = None
    pooling: Pooling | None = None
    small_input: bool | None = None
    freeze: Freeze = "none"
    checkpoint_layers: tuple[str, ...] = ()

    def build(self, in_channels: int, image_size: tuple[int, ...]) -> Encoder:
        """An encoder with its weights."""
        if not in_channels:
            raise UsageError("the data have no images", hint="use model=tabular")
        return build_encoder(
            self.arch,
            in_channels=in_channels,
            image_size=image_size,
            weights=self.weights,
            min_matched=self.min_matched,
            drop_rate=self.drop_rate,
            drop_path_rate=self.drop_path_rate,
            pooling=self.pooling,
            small_input=self.small_input,
        )

    def finish(self, model: FreezableModel, encoders: Sequence[Encoder]) -> None:
        """Freeze parts of a model with such encoders for good, and let others compute their activations twice."""
        finish(model, encoders, freeze=self.freeze, checkpoint_layers=self.checkpoint_layers)


class ImageEncoder(nn.Module):
    """Encodes the images of a sample: one, a bag, or named views with one encoder or an encoder for each.

    Args:
        settings: Of the encoder.
        in_channels: Image channels C.
        image_size: (H, W) or (D, H, W).
        view_names: Names of the views; empty for single images and bags.
        shared: Whether all views have the same encoder.
        chunk_size: Images encoded at a time; None for all.

    Raises:
        UsageError: Encoders for each view, and there are no views.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        *,
        in_channels: int,
        image_size: tuple[int, ...],
        view_names: Sequence[str] = (),
        shared: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if not shared and len(view_names) < 2:
            raise UsageError(
                "model.shared=false gives each view an encoder of its own, and the data have no views",
                hint="leave model.shared=true, or name the columns of the views in the data's settings",
            )
        self.spatial_dims = len(image_size)
        self.chunk_size = chunk_size
        names = ["shared"] if shared else _module_names(view_names)
        for name in names:
            self.add_module(name, settings.build(in_channels, image_size))
        first = self.each()[0]
        self.num_features = first.num_features
        self.map_features = first.map_features
        self.map_size = first.map_size
        # all views' maps pass through here, one behind the other, for Grad-CAM
        self.maps = nn.Identity()

    def forward(self, image: Tensor, present: Tensor | None, *, maps: bool = False) -> tuple[Encoded, Tensor]:
        """Features of every image, and which exist as [B, N].

        Args:
            image: [B, C, *S] or [B, N, C, *S].
            present: [B, N] bool, or None where all exist.
            maps: Also return feature maps.
        """
        image, present = as_instances(image, present, self.spatial_dims)
        there = present.to(image.device, non_blocking=True)
        encoders = self.each()
        if len(encoders) == 1:
            return encode_images(encoders[0], image, present, chunk_size=self.chunk_size, maps=maps), there
        if len(encoders) != image.shape[1]:
            raise MedtrainError(f"the model has encoders for {len(encoders)} views, got images of {image.shape[1]}")
        from_maps = self._vectors_come_from_maps()
        views = [
            encode_images(
                encoder,
                image[:, v : v + 1],
                present[:, v : v + 1],
                chunk_size=self.chunk_size,
                maps=maps or from_maps,
            )
            for v, encoder in enumerate(encoders)
        ]
        found = torch.cat([view.maps for view in views if view.maps is not None], 1) if maps or from_maps else None
        if found is None or not from_maps:
            return Encoded(torch.cat([view.vectors for view in views], 1), found), there
        found = self.maps(found.flatten(0, 1)).unflatten(0, image.shape[:2])
        vectors = torch.stack([encoder.pool(found[:, v]) for v, encoder in enumerate(encoders)], 1)
        return Encoded(vectors.masked_fill(~there.unsqueeze(-1), 0.0), found if maps else None), there

    def feature_layer(self) -> nn.Module:
        """The module whose output is the feature map of every image, for Grad-CAM.

        Raises:
            UsageError: The views have encoders of their own whose vectors do not come from a map.
        """
        encoders = self.each()
        if len(encoders) == 1:
            return encoders[0].feature_layer()
        if not self._vectors_come_from_maps():
            raise UsageError(
                "the views' encoders read class tokens, not feature maps",
                hint="set model.pooling=avg or model.shared=true",
            )
        return self.maps

    def each(self) -> list[Encoder]:
        """The encoder, or that of each view."""
        return [encoder for encoder in self.children() if isinstance(encoder, Encoder)]

    def _vectors_come_from_maps(self) -> bool:
        first = self.each()[0]
        try:
            return first.feature_layer() is getattr(first, "map", None)
        except UsageError:
            return False


def as_instances(image: Tensor, present: Tensor | None, spatial_dims: int) -> tuple[Tensor, Tensor]:
    """Images as [B, N, C, *S] and which of them exist as [B, N]; a single image is a bag of one.

    Args:
        image: [B, C, *S] or [B, N, C, *S].
        present: [B, N] bool, or None where all exist.
        spatial_dims: Axes of an image.

    Raises:
        MedtrainError: `present` is about another number of images.
    """
    if image.ndim == spatial_dims + 2:
        image = image.unsqueeze(1)
    if present is None:
        present = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
    if present.shape != image.shape[:2]:
        raise MedtrainError(
            f"`present` has the shape {list(present.shape)}, and there are {image.shape[1]} images for each of "
            f"{image.shape[0]} samples"
        )
    return image, present


def encode_images(
    encoder: Encoder, images: Tensor, present: Tensor, *, chunk_size: int | None = None, maps: bool = False
) -> Encoded:
    """Encode the images that exist, and no others: padding costs nothing and does not touch batch statistics.

    Which images exist decides the size of the batch that is encoded, so `present` is read on the CPU; where it is on
    another device that waits for it.

    Args:
        encoder: Of one image.
        images: [B, N, C, *S].
        present: [B, N] bool.
        chunk_size: Images encoded at a time; None for all. While training, the features inside the encoder are then
            computed again in the backward pass, so that memory holds those of one chunk only.
        maps: Also return feature maps.
    """
    lead, flat = images.shape[:2], images.flatten(0, 1)
    rows = None if _is_traced() else present.flatten().nonzero().squeeze(1)
    if rows is not None and len(rows) == len(flat):
        rows = None
    if rows is not None and not len(rows):
        return _encode_nothing(encoder, images, maps)
    chosen = flat if rows is None else flat.index_select(0, rows.to(flat.device, non_blocking=True))
    vectors, found = _in_chunks(encoder, chosen, chunk_size, maps)
    absent = ~present.to(images.device, non_blocking=True)
    spread = [None if part is None else _spread(part, rows, lead, absent) for part in (vectors, found)]
    assert spread[0] is not None
    return Encoded(spread[0], spread[1])


def _in_chunks(encoder: Encoder, images: Tensor, chunk_size: int | None, maps: bool) -> tuple[Tensor, Tensor | None]:
    """Vectors, and maps where asked for, of images [P, C, *S]."""
    twice = not _is_traced() and _normalizes_single_values(encoder)

    def encode(chunk: Tensor) -> tuple[Tensor, ...]:
        if twice and len(chunk) == 1:  # the statistics of one value are refused
            chunk = chunk.expand(2, *chunk.shape[1:])
            return tuple(values[:1] for values in encode(chunk))
        return encoder.features_and_vector(chunk)[::-1] if maps else (encoder(chunk),)

    if chunk_size is None or len(images) <= chunk_size:
        parts = [encode(images)]
    else:
        chunks = images.tensor_split(math.ceil(len(images) / chunk_size))  # no remainder with statistics of its own
        if encoder.training and not _is_traced() and any(p.requires_grad for p in encoder.parameters()):
            parts = [recomputed(encoder, encode, chunk) for chunk in chunks]
        else:
            parts = [encode(chunk) for chunk in chunks]
    vectors, *found = (torch.cat(column) for column in zip(*parts, strict=True))
    return vectors, found[0] if found else None


def _spread(values: Tensor, rows: Tensor | None, lead: torch.Size, absent: Tensor) -> Tensor:
    """Put the values of the encoded images back in their places among all."""
    if rows is not None:
        empty = values.new_zeros(lead.numel(), *values.shape[1:])
        return empty.index_copy(0, rows.to(values.device, non_blocking=True), values).unflatten(0, lead)
    spread = values.unflatten(0, lead)
    return spread.masked_fill(absent.reshape(*lead, *[1] * (values.ndim - 1)), 0.0)


def _encode_nothing(encoder: Encoder, images: Tensor, maps: bool) -> Encoded:
    """Zeros with a graph to every weight of the encoder: all ranks must take part in a step."""
    zero = images.new_zeros(())
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            zero = zero + parameter.sum() * 0.0
    vectors = zero.expand(*images.shape[:2], encoder.num_features)
    if not maps:
        return Encoded(vectors, None)
    return Encoded(vectors, zero.expand(*images.shape[:2], encoder.map_features, *encoder.map_size))


def _normalizes_single_values(encoder: Encoder) -> bool:
    """Whether an encoder in training has batch norms that may see one value of a channel: maps of one cell."""
    return all(size == 1 for size in encoder.map_size) and any(
        isinstance(norm, _BatchNorm) and norm.training for norm in encoder.modules()
    )


def _is_traced() -> bool:
    """Whether a graph is being recorded, whose shapes must not depend on values."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def _module_names(view_names: Sequence[str]) -> list[str]:
    """Names of the views that modules may have: without dots, and each once."""
    names = [f"view_{re.sub(r'[^A-Za-z0-9]+', '_', name)}" for name in view_names]
    return [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]
