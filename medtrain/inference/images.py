"""How images are classified: batches, test-time mirroring, calibration, the threshold of a positive."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.registry import Range, register

PredictFn = Callable[[Mapping[str, Any], tuple[int, ...]], Tensor]
"""Maps a batch, and the axes along which it is mirrored, to predictions [B, P] that may be averaged."""


@register("inference", "images", tags=("images",))
@dataclass(frozen=True, kw_only=True)
class ImageInference:
    """Predict images, bags and views, for evaluation and prediction.

    Thresholds and the temperature are chosen on the validation part, kept with the run, and applied unchanged to
    everything else.

    Args:
        batch_size: Samples per forward; null takes them as the data come. Less needs less memory.
        mirror: Average the predictions (probabilities, not logits) over mirrored inputs in `evaluate`, `predict` and
            the final evaluation.
        mirror_in_training: The same for the evaluations during training.
        mirror_axes: Axes of the image that are mirrored, 0 is the first; null is the last one, left and right.
        threshold: With two classes, or several labels: the least probability that is called positive. `youden` takes
            the one that maximises sensitivity + specificity on the validation part (per label).
        min_sensitivity: Instead: the highest threshold that finds this share of the positives of the validation part.
        calibrate: Divide the logits by a temperature fitted on the validation part (Guo et al., ICML 2017).
    """

    batch_size: Annotated[int, Range(ge=1)] | None = None
    mirror: bool = False
    mirror_in_training: bool = False
    mirror_axes: tuple[Annotated[int, Range(ge=0, le=2)], ...] | None = None
    threshold: Annotated[float, Range(gt=0, lt=1)] | Literal["youden"] = 0.5
    min_sensitivity: Annotated[float, Range(gt=0, le=1)] | None = None
    calibrate: bool = False

    def __post_init__(self) -> None:
        if self.min_sensitivity is not None and self.threshold != 0.5:
            raise UsageError(
                f"inference.min_sensitivity={self.min_sensitivity} and inference.threshold={self.threshold} "
                "both choose the threshold",
                hint="leave inference.threshold at 0.5, or set inference.min_sensitivity=null",
            )
        if self.mirror_axes is not None and not (self.mirror or self.mirror_in_training):
            raise UsageError(
                f"inference.mirror_axes={list(self.mirror_axes)} has no effect without mirroring",
                hint="set inference.mirror=true",
            )

    @property
    def chooses_threshold(self) -> bool:
        """Whether the threshold is chosen on the validation part."""
        return self.threshold == "youden" or self.min_sensitivity is not None

    @property
    def has_threshold(self) -> bool:
        """Whether a threshold was asked for."""
        return self.chooses_threshold or self.threshold != 0.5

    @property
    def fixed_threshold(self) -> float:
        """The threshold where none was chosen on the validation part."""
        return 0.5 if isinstance(self.threshold, str) else self.threshold

    def mirrored_axes(self, spatial_dims: int) -> tuple[int, ...]:
        """The axes that are mirrored, ascending.

        Raises:
            UsageError: An axis that the image does not have.
        """
        axes = (spatial_dims - 1,) if self.mirror_axes is None else tuple(sorted(set(self.mirror_axes)))
        if axes and axes[-1] >= spatial_dims:
            raise UsageError(
                f"inference.mirror_axes={list(axes)}: an image has {spatial_dims} axes, 0 to {spatial_dims - 1}"
            )
        return axes

    def copies(self, spatial_dims: int, *, mirror: bool) -> list[tuple[int, ...]]:
        """The mirrored axes of every copy of an image; the first is the image as it is.

        Args:
            spatial_dims: 2 or 3.
            mirror: Whether to mirror at all: `self.mirror` or `self.mirror_in_training`.
        """
        axes = self.mirrored_axes(spatial_dims) if mirror else ()
        return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]

    def predict(self, predict_fn: PredictFn, batch: Mapping[str, Any], *, spatial_dims: int, mirror: bool) -> Tensor:
        """Predict a batch in parts, and average over its mirrored copies.

        Args:
            predict_fn: Gives predictions [B, P] that may be averaged, such as probabilities.
            batch: Entries of the images family.
            spatial_dims: 2 or 3.
            mirror: Whether to average over mirrored copies.

        Returns:
            [B, P] float64 on the CPU.
        """
        copies = self.copies(spatial_dims, mirror=mirror)
        parts = []
        for part in split_batch(batch, self.batch_size):
            total: Tensor | float = 0.0
            for axes in copies:
                said = predict_fn(mirror_images(part, axes, spatial_dims), axes)
                total = total + said.cpu().double()
            assert isinstance(total, Tensor)
            parts.append(total / len(copies))
        return torch.cat(parts)


def mirror_images(batch: Mapping[str, Any], axes: Sequence[int], spatial_dims: int) -> Mapping[str, Any]:
    """The batch with its images mirrored along some axes.

    Args:
        batch: `image` [B, ..., *S] and other entries, which stay.
        axes: Of S, 0 is the first; none gives the batch itself.
        spatial_dims: Number of axes in S.
    """
    if not axes or batch.get("image") is None:
        return batch
    return {**batch, "image": batch["image"].flip([axis - spatial_dims for axis in axes])}


def split_batch(batch: Mapping[str, Any], size: int | None) -> Iterator[Mapping[str, Any]]:
    """Parts of at most `size` samples, in order.

    Args:
        batch: Tensors and lists with one entry per sample; `weight` and other scalars stay as they are.
        size: Samples per part; None gives the batch itself.
    """
    count = batch_size(batch)
    if size is None or count <= size:
        yield batch
        return
    for start in range(0, count, size):
        part = slice(start, start + size)
        yield {key: value[part] if _is_per_sample(value, count) else value for key, value in batch.items()}


def batch_size(batch: Mapping[str, Any]) -> int:
    """Number of samples of a batch, by its ids or its first tensor."""
    if "case_id" in batch:
        return len(batch["case_id"])
    return next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim() > 0)


def _is_per_sample(value: Any, count: int) -> bool:
    if isinstance(value, Tensor):
        return value.dim() > 0 and len(value) == count
    return isinstance(value, list | tuple) and len(value) == count
