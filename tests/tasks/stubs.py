"""A model whose logits are its image, and plans and batches by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medtrain.data.images.plan import ImagePlan, TargetPlan
from medtrain.inference.images import ImageInference
from medtrain.registry import build

NAN = math.nan


def made(
    task_name: str, *, loss: Any, plan: ImagePlan, inference: ImageInference | None = None, **settings: Any
) -> Any:
    """A task on the CPU."""
    known = {"loss": loss, "plan": plan, "inference": inference or ImageInference()}
    return build("task", {"name": task_name, **settings}, **known, device=torch.device("cpu"), memory_format=None)


class Echo(nn.Module):
    """Returns the pixels of its image as logits, times a weight that is 1 at the start."""

    inputs: tuple[str, ...] = ("image",)

    def __init__(self, *, aux: dict[str, float] | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.aux = aux or {}

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        logits = image.flatten(1) * self.scale  # [B, P]
        if not self.aux:
            return logits
        return {"logits": logits, **{f"aux/{name}": logits * factor for name, factor in self.aux.items()}}


def target(*classes: str, name: str = "finding", counts: tuple[int, ...] | None = None) -> TargetPlan:
    """A target of classes."""
    return TargetPlan(name, classes, counts or (10,) * len(classes))


def number(name: str = "age", *, mean: float = 0.0, std: float = 1.0) -> TargetPlan:
    """A target that is a number."""
    return TargetPlan(name, None, (), mean, std)


def plan(*targets: TargetPlan, width: int = 2, **changes: Any) -> ImagePlan:
    """Images [1, 1, width] that are not changed on their way to the model."""
    values: dict[str, Any] = {
        "spatial_dims": 2,
        "image_size": (1, width),
        "in_channels": 1,
        "batch_size": 4,
        "mean": (0.0,),
        "std": (1.0,),
        "targets": targets,
    }
    return ImagePlan(**{**values, **changes})


def batch(
    logits: Sequence[Sequence[float]] | Tensor,
    targets: Sequence[Sequence[float]] | Tensor | None = None,
    *,
    groups: Sequence[str] | None = None,
    first: int = 0,
) -> dict[str, Any]:
    """A batch whose images are logits [B, P]; ids are `c000`, `c001`, ..., each its own patient if nothing is said."""
    pixels = torch.as_tensor(logits, dtype=torch.float32)
    ids = [f"c{index:03d}" for index in range(first, first + len(pixels))]
    found: dict[str, Any] = {
        "case_id": ids,
        "group": list(groups) if groups is not None else ids,
        "weight": float(len(pixels)),
        "image": pixels.reshape(len(pixels), 1, 1, -1),
    }
    if targets is not None:
        found["target"] = torch.as_tensor(targets, dtype=torch.float32).reshape(len(pixels), -1)
    return found
