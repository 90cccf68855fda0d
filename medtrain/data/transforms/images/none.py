"""Images as they are, brought to one size."""

from __future__ import annotations

from dataclasses import dataclass

from medtrain.data.transforms.images.base import ResizedImages
from medtrain.registry import register


@register("augment", "images_none", runtime=("image_size", "spatial_dims", "in_channels"), tags=("images",))
@dataclass(frozen=True, kw_only=True)
class NoImageAugmentation(ResizedImages):
    """Pictures or volumes without random changes: training sees what evaluation sees (but for what `crop` cuts)."""
