"""No augmentation: the patch as it was read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from medtrain.data.transforms.base import empty_patches, fit
from medtrain.registry import register


@register("augment", "none", tags=("segmentation",))
class NoAugmentation:
    """Patches as they were read, without any random change."""

    def draw(self, rng: np.random.Generator, *, patch_size: tuple[int, ...]) -> dict[str, Any]:
        """Ask for a read of the patch's own size; takes nothing from the generator."""
        return {"read_size": tuple(patch_size)}

    @torch.no_grad()
    def apply(self, batch: dict[str, Any], *, patch_size: tuple[int, ...], label_pad: int) -> dict[str, Any]:
        """Crop or pad the reads around their centre and stack them; see `Augmentation.apply`."""
        image, label = empty_patches(batch, patch_size)
        for i, (read, read_label) in enumerate(zip(batch["image"], batch["label"])):
            image[i].copy_(fit(read, patch_size, fill=0.0))
            label[i].copy_(fit(read_label, patch_size, fill=label_pad))
        return {**batch, "image": image, "label": label}
