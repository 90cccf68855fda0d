"""The plan of a set of labelled images: what networks, losses and whoever reads an image later need to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from medtrain.data.tabular import TabularEncoder
from medtrain.registry import plain

ImageScaling = Literal["auto", "full_range", "min_max", "percentile"]


@dataclass(frozen=True)
class TargetPlan:
    """What is to be predicted, and how it is distributed in the training part.

    Args:
        target_name: Column, or "class".
        classes: Class names by index, or None for a number.
        counts: Labelled samples of the training part by class; empty for a number.
        mean: Mean of a number over the training part; 0 for classes.
        std: Standard deviation of a number over the training part, 1 where all are the same; 1 for classes.
    """

    target_name: str
    classes: tuple[str, ...] | None
    counts: tuple[int, ...] = ()
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class ImageFormat:
    """What becomes of an image file before augmentation; part of the key of prepared copies.

    Args:
        spatial_dims: 2 for pictures, 3 for volumes.
        image_size: (H, W) or (D, H, W) that the network sees. Pictures that are more than three times larger are
            brought to twice the size, larger volumes to just this size; the rest is left to the augmentation.
        in_channels: Grey is repeated to 3 channels, colours become luma.
        window: Centre and width in Hounsfield units, or None.
        scaling: How numbers become 0 to 1; `auto` leaves 8 bits as they are and takes the 0.5 and 99.5 percentiles
            of every other image.
    """

    spatial_dims: int
    image_size: tuple[int, ...]
    in_channels: int
    window: tuple[float, float] | None = None
    scaling: ImageScaling = "auto"


@dataclass(frozen=True)
class ImagePlan:
    """What training, evaluation, prediction and export need to know about a set of images and tabular values.

    Args:
        spatial_dims: 2 or 3.
        image_size: (H, W) or (D, H, W); empty where there are no images.
        in_channels: Channels of an image; 0 where there are none.
        batch_size: Samples per forward pass, over all devices.
        mean: Subtracted from each channel of images from 0 to 1.
        std: Divided by.
        view_names: Names of the views in the order of the batch's V axis; empty without views.
        max_instances: Most instances of a bag in training; None without bags.
        numeric_names: Columns of `numeric`.
        category_sizes: Codes of each column of `categorical`.
        tabular: Fitted on the training part; None without tabular columns.
        targets: In the order of the batch's T axis.
        optional_image: Whether a sample may lack its only image.
        annotated: Whether samples may have a mask of what matters.
        window: See `ImageFormat`.
        scaling: See `ImageFormat`.
        metadata_names: Columns that only tell of samples.
        paired_targets: Indices of targets that change places when left and right do.
        event_times: Times, or percentiles of the times, of the events in the training part; empty without such targets.
        reasons: One sentence per derived value, by dotted config key.
    """

    spatial_dims: int
    image_size: tuple[int, ...]
    in_channels: int
    batch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    view_names: tuple[str, ...] = ()
    max_instances: int | None = None
    numeric_names: tuple[str, ...] = ()
    category_sizes: tuple[int, ...] = ()
    tabular: TabularEncoder | None = None
    targets: tuple[TargetPlan, ...] = ()
    optional_image: bool = False
    annotated: bool = False
    window: tuple[float, float] | None = None
    scaling: ImageScaling = "auto"
    metadata_names: tuple[str, ...] = ()
    paired_targets: tuple[tuple[int, int], ...] = ()
    event_times: tuple[float, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def family(self) -> Literal["images"]:
        """The tag of the components that fit."""
        return "images"

    @property
    def has_images(self) -> bool:
        """Whether there is anything but tabular values."""
        return self.in_channels > 0

    @property
    def several_images(self) -> bool:
        """Whether `image` has an axis of views or instances."""
        return bool(self.view_names) or self.max_instances is not None

    @property
    def swapped_targets(self) -> list[int]:
        """The index of the target that is in each one's place when left and right have changed places."""
        order = list(range(len(self.targets)))
        for left, right in self.paired_targets:
            order[left], order[right] = right, left
        return order

    @property
    def image_format(self) -> ImageFormat:
        """How image files are read."""
        return ImageFormat(self.spatial_dims, self.image_size, self.in_channels, self.window, self.scaling)

    def case_cost(self, inference: Mapping[str, Any]) -> float:
        """A forward pass is a third of what a sample costs in training."""
        return 1 / (3 * self.batch_size)

    def runtime(self) -> dict[str, Any]:
        """What components may ask for by name."""
        classes = self.targets[0].classes if self.targets else None
        return {
            "spatial_dims": self.spatial_dims,
            "in_channels": self.in_channels,
            "image_size": self.image_size,
            "view_names": self.view_names,
            "num_views": len(self.view_names),
            "max_instances": self.max_instances,
            "num_numeric": len(self.numeric_names),
            "category_sizes": self.category_sizes,
            "targets": self.targets,
            "class_counts": [target.counts for target in self.targets],
            "num_classes": len(classes) if classes else 0,
            "event_times": self.event_times,
        }

    def facts(self) -> list[tuple[str, str, str]]:
        """What preparing settles: name, value and why."""
        if not self.has_images:
            return []
        size = " x ".join(str(n) for n in self.image_size)
        return [
            ("image size", size, self.reasons.get("data.image_size", "as given")),
            ("channels", str(self.in_channels), self.reasons.get("data.channels", "as given")),
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`; from_json gives back an equal plan."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("tabular", "targets")}
        values["tabular"] = None if self.tabular is None else self.tabular.to_json()
        values["targets"] = [asdict(target) for target in self.targets]
        return {name: plain(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ImagePlan:
        """Inverse of to_json."""
        values = {f.name: _tuples(data[f.name]) for f in fields(cls)}
        values["tabular"] = None if data["tabular"] is None else TabularEncoder.from_json(data["tabular"])
        values["targets"] = tuple(
            TargetPlan(**{name: _tuples(value) for name, value in target.items()}) for target in data["targets"]
        )
        values["reasons"] = dict(data["reasons"])
        return cls(**values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
