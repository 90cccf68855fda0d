"""The plan: everything that follows from the data and the machine, each value with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

NormalizationScheme = Literal["ct", "zscore", "none"]


@dataclass(frozen=True)
class ChannelNormalization:
    """How the intensities of one channel become network input.

    Args:
        scheme: ct clips to [lower, upper], subtracts mean and divides by std, all of the training part's foreground;
            zscore subtracts the mean and divides by the standard deviation of each case; none does nothing.
        lower: 0.5 percentile of the foreground (ct).
        upper: 99.5 percentile of the foreground (ct).
        mean: Mean of the foreground (ct).
        std: Standard deviation of the foreground (ct).
        nonzero: Whether zscore uses only the non-zero voxels and leaves the others at 0.
    """

    scheme: NormalizationScheme
    lower: float = 0.0
    upper: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    nonzero: bool = False


@dataclass(frozen=True)
class Plan:
    """What training, evaluation, prediction and export need to know about the data and the network's shape.

    Args:
        spatial_dims: 2 or 3.
        spacing: Target voxel size in mm, one value per spatial dimension (2-D keeps each case's own slice spacing).
        patch_size: Voxels per spatial dimension; a multiple of the product of strides.
        batch_size: Patches per optimizer step.
        channels: Features of each stage of the network, highest resolution first.
        strides: Stride of each stage per axis; the first is 1.
        kernel_sizes: Kernel of each stage per axis.
        normalization: One entry per input channel.
        in_channels: Number of input channels.
        num_classes: Number of classes, background included, ignore excluded.
        class_names: Name of each class; class 0 is the background.
        label_values: Value in the label files of each class.
        ignore_index: Class index of voxels without annotation (= num_classes), or None.
        channel_names: Name of each input channel.
        median_shape: Median shape of the cropped and resampled cases (D, H, W).
        reasons: One sentence per derived value, keyed by dotted config key (`data.patch_size`, `model.channels`).
    """

    spatial_dims: int
    spacing: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    normalization: tuple[ChannelNormalization, ...]
    in_channels: int
    num_classes: int
    class_names: tuple[str, ...]
    label_values: tuple[int, ...]
    ignore_index: int | None
    channel_names: tuple[str, ...]
    median_shape: tuple[int, ...]
    reasons: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`; from_json gives back an equal plan."""
        return _plain(asdict(self))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Inverse of to_json."""
        values = {f.name: _tuples(data[f.name]) for f in fields(cls)}
        values["normalization"] = tuple(ChannelNormalization(**entry) for entry in data["normalization"])
        values["reasons"] = dict(data["reasons"])
        return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
