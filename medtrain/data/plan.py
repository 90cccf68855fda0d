"""The plan: everything that follows from the data and the machine, each value with its reason.

With a GPU of 8 GiB or more the rules and numbers are nnU-Net's (see `medtrain.data.topology`): one fingerprint gives
the same plan. On a CPU the same rules run with a smaller budget.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from medtrain.data.cascade import PreviousStage
from medtrain.data.footprint import PLAIN_UNET, Footprint
from medtrain.data.labels import LabelMap
from medtrain.data.network import (
    Budget,
    Device,
    NetworkRequest,
    by,
    derive_batch_size,
    derive_channels,
    derive_network,
    machine_budget,
    per_axis,
)
from medtrain.data.regions import RegionMap
from medtrain.data.resolution import COVERED, derive_resolution, low_resolution
from medtrain.errors import ConfigError, Problem

if TYPE_CHECKING:
    from medtrain.data.case import Dataset
    from medtrain.data.fingerprint import Fingerprint
    from medtrain.data.volume_data import VolumeData

log = logging.getLogger(__name__)

ANISOTROPY = 3.0
"""An axis more than this much coarser than the others, and as much shorter, is resampled more finely (nnU-Net)."""
NONZERO_BELOW = 0.75
"""Zscore uses non-zero voxels only when they fill less than this share of the median scan (nnU-Net)."""

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
        patch_size: Voxels per spatial dimension; a multiple of the product of strides, unless it was given.
        batch_size: Patches per forward pass, over all devices.
        channels: Features of each stage of the network, highest resolution first.
        strides: Stride of each stage per axis; the first is 1.
        kernel_sizes: Kernel of each stage per axis.
        normalization: One entry per input channel.
        in_channels: Number of image channels.
        num_classes: Number of classes, background included, ignore excluded.
        class_names: Name of each class; class 0 is the background.
        label_values: Value in the label files of each class.
        ignore_index: Class index of voxels without annotation (= num_classes), or None.
        channel_names: Name of each input channel.
        median_shape: Median shape of the cropped and resampled cases (D, H, W).
        source_spacing: Finest and coarsest voxel size in mm (D, H, W) of the training cases' files; None in plans of
            before it was kept.
        regions: The class indices of every region, the class that the region is painted with first, regions in the
            order in which they are painted over each other; None where every class has an output of its own.
        region_names: Name of every region.
        resolution: Whether the voxel size is the data's own or a coarser one (see `medtrain.data.resolution`).
        cascade: The previous stage, whose label maps are further channels of the network; None without one.
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
    regions: tuple[tuple[int, ...], ...] | None = None
    region_names: tuple[str, ...] = ()
    resolution: Literal["full", "low"] = "full"
    source_spacing: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    cascade: PreviousStage | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    family: ClassVar[Literal["segmentation"]] = "segmentation"

    @property
    def num_outputs(self) -> int:
        """Channels of the network's logits: the classes, or the regions."""
        return self.num_classes if self.regions is None else len(self.regions)

    @property
    def input_channels(self) -> int:
        """Channels of the network's input: of the image, and of the previous stage's hints."""
        return self.in_channels + (0 if self.cascade is None else self.cascade.num_channels)

    @property
    def zscore_nonzero(self) -> bool:
        """Whether zscore uses only the voxels inside the body."""
        return any(channel.nonzero for channel in self.normalization)

    @property
    def judged_names(self) -> tuple[str, ...]:
        """What evaluations judge: the regions, or the classes without the background."""
        return self.class_names[1:] if self.regions is None else self.region_names

    @property
    def named_regions(self) -> dict[str, tuple[int, ...]]:
        """Class indices of every region by its name; empty where every class has an output of its own."""
        return {} if self.regions is None else dict(zip(self.region_names, self.regions, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dump`; from_json gives back an equal plan."""
        return _plain(asdict(self))

    def case_cost(self, inference: Mapping[str, Any]) -> float:
        """Of the median case: its windows are forward passes, a third of what a patch costs in training."""
        stride = 1.0 - inference["overlap"]
        sizes = zip(self.median_shape[-self.spatial_dims :], self.patch_size, strict=True)
        windows = math.prod(1 + math.ceil(max(0, size - patch) / max(1.0, patch * stride)) for size, patch in sizes)
        slices = self.median_shape[0] if self.spatial_dims == 2 else 1
        return slices * windows / (3 * self.batch_size)

    def facts(self) -> list[tuple[str, str, str]]:
        """What preparing settles: name, value and why."""
        size = " x ".join(f"{value:g}" for value in self.spacing)
        return [("spacing", f"{size} mm", self.reasons.get("data.spacing", "as given"))]

    def runtime(self) -> dict[str, Any]:
        """What components may ask for; `masked_channels` are those whose background stays 0."""
        masked = tuple(index for index, channel in enumerate(self.normalization) if channel.nonzero)
        return {
            "spatial_dims": self.spatial_dims,
            "in_channels": self.in_channels,
            "patch_size": self.patch_size,
            "num_classes": self.num_classes,
            "regions": self.regions,
            "masked_channels": masked,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Inverse of to_json; what older runs did not know has its default."""
        old = {f.name for f in fields(cls) if f.default is not MISSING and f.name not in data}
        values = {f.name: _tuples(data[f.name]) for f in fields(cls) if f.name not in old}
        values["normalization"] = tuple(ChannelNormalization(**entry) for entry in data["normalization"])
        values["reasons"] = dict(data["reasons"])
        if data.get("cascade") is not None:
            values["cascade"] = PreviousStage.from_json(data["cascade"])
        return cls(**values)


def make_plan(
    fingerprint: Fingerprint,
    dataset: Dataset,
    settings: VolumeData,
    *,
    device: Device,
    memory_gib: float,
    cores: int,
    channels: Sequence[int] | None = None,
    strides: Sequence[int | Sequence[int]] | None = None,
    kernel_sizes: Sequence[int | Sequence[int]] | None = None,
    footprint: Footprint = PLAIN_UNET,
    half: bool = True,
) -> Plan:
    """Derive what the user left open; what the user set is taken and the rest made to fit.

    Args:
        fingerprint: Of the training part.
        dataset: Channel names and labels.
        settings: The user's data settings.
        device: Where training runs.
        memory_gib: Memory of that device.
        cores: CPU cores available.
        channels: The user's features per stage, if any.
        strides: The user's stride per stage (one number or one per axis), if any.
        kernel_sizes: The user's kernel per stage, if any.
        footprint: What the network takes of the memory.
        half: Whether a GPU computes in a 16-bit precision.

    Raises:
        ConfigError: The user's values contradict each other or the data.
    """
    reasons: dict[str, str] = {}
    dims = _spatial_dims(fingerprint, settings, reasons)
    _check(settings, dims, channels, strides, kernel_sizes)
    spacing = _spacing(fingerprint, settings, dims, reasons)
    median_shape = fingerprint.median_shape(spacing)
    labels = LabelMap.from_dataset(dataset, settings.merge_labels)
    regions = RegionMap.from_settings(dataset, labels, settings.regions)
    outputs = labels.num_classes if regions is None else len(regions.members)
    request = NetworkRequest(
        spacing=spacing,
        median_shape=median_shape[-dims:],
        num_outputs=outputs,
        patch_size=settings.patch_size,
        channels=None if channels is None else tuple(channels),
        strides=None if strides is None else per_axis(strides, dims),
        kernel_sizes=None if kernel_sizes is None else per_axis(kernel_sizes, dims),
        in_channels=len(dataset.channel_names),
        footprint=footprint,
    )
    budget = machine_budget(
        device, memory_gib, cores, dims, footprint=footprint, planned_gib=settings.memory_gib, half=half
    )
    resolution = settings.resolution or "full"
    shaping = (settings.resolution, settings.spacing, settings.patch_size, settings.cascade_from)
    if all(value is None for value in shaping):
        resolution, why = derive_resolution(request, budget, device)
        if resolution == "low":
            reasons["data.resolution"] = why
    if resolution == "low":
        request = _lower(request, settings, budget, fingerprint, reasons)
        spacing, median_shape = request.spacing, request.median_shape
    network = derive_network(request, budget, reasons)
    widths = derive_channels(request, network, budget, reasons)
    batch_size = settings.batch_size
    if batch_size is None:
        voxels = math.prod(median_shape) * fingerprint.num_cases
        batch_size = derive_batch_size(request, network, widths, budget, voxels, reasons)
    return Plan(
        spatial_dims=dims,
        spacing=spacing,
        patch_size=settings.patch_size or network.patch_size,
        batch_size=batch_size,
        channels=widths,
        strides=network.strides,
        kernel_sizes=network.kernel_sizes,
        normalization=_normalization(fingerprint, dataset.channel_names, settings, reasons),
        in_channels=len(dataset.channel_names),
        num_classes=labels.num_classes,
        class_names=labels.class_names,
        label_values=labels.label_values,
        ignore_index=labels.ignore_index,
        channel_names=tuple(dataset.channel_names),
        median_shape=tuple(max(1, round(n)) for n in median_shape),
        regions=None if regions is None else regions.members,
        region_names=() if regions is None else regions.region_names,
        resolution=resolution,
        source_spacing=fingerprint.spacing_range,
        reasons=reasons,
    )


def _check(
    settings: VolumeData,
    dims: int,
    channels: Sequence[int] | None,
    strides: Sequence[int | Sequence[int]] | None,
    kernel_sizes: Sequence[int | Sequence[int]] | None,
) -> None:
    """Refuse values whose lengths contradict each other, all at once."""
    found: list[Problem] = []
    axes = "D, H, W" if dims == 3 else "H, W"
    for name in ("patch_size", "spacing"):
        given = getattr(settings, name)
        if given is not None and len(given) != dims:
            message = f"{len(given)} values where {dims} are needed ({axes})"
            found.append(Problem(where=f"data.{name}", message=message))
    stages = {"channels": channels, "strides": strides, "kernel_sizes": kernel_sizes}
    counts = {name: len(values) for name, values in stages.items() if values is not None}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"model.{name} has {count}" for name, count in counts.items())
        found.append(Problem(where=f"model.{next(iter(counts))}", message=f"one value per stage is needed: {shown}"))
    for name in ("strides", "kernel_sizes"):
        for stage in stages[name] or ():
            if not isinstance(stage, int) and len(stage) != dims:
                message = f"{list(stage)}: {dims} values ({axes}) or one number are needed per stage"
                found.append(Problem(where=f"model.{name}", message=message))
    if found:
        raise ConfigError(found)


def _spatial_dims(fingerprint: Fingerprint, settings: VolumeData, reasons: dict[str, str]) -> int:
    if settings.spatial_dims is not None:
        return settings.spatial_dims
    for name in ("patch_size", "spacing"):
        given = getattr(settings, name)
        if given is not None and len(given) in (2, 3):
            reasons["data.spatial_dims"] = f"data.{name} has {len(given)} values"
            if len(given) == 2 and max(shape[0] for shape in fingerprint.shapes) > 1:
                log.warning("data.%s has 2 values, so slices are trained; give 3 to train on volumes", name)
            return len(given)
    slices = float(np.median([shape[0] for shape in fingerprint.shapes]))
    if slices == 1:
        reasons["data.spatial_dims"] = "cases are single slices"
        return 2
    reasons["data.spatial_dims"] = f"the median case has {slices:g} slices"
    return 3


def _spacing(fingerprint: Fingerprint, settings: VolumeData, dims: int, reasons: dict[str, str]) -> tuple[float, ...]:
    """nnU-Net's target: the median, or the 10th percentile along an axis that is coarse and short."""
    if settings.spacing is not None:
        return tuple(float(mm) for mm in settings.spacing)
    spacings, shapes = np.array(fingerprint.spacings, dtype=np.float64), np.array(fingerprint.shapes)
    target, extent = np.percentile(spacings, 50, axis=0), np.percentile(shapes, 50, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    coarsest_other = max(target[others])
    reason = f"median voxel size of {fingerprint.num_cases} training cases"
    if target[worst] > ANISOTROPY * coarsest_other and extent[worst] * ANISOTROPY < min(extent[others]):
        fine = np.percentile(spacings[:, worst], 10)
        target[worst] = fine if fine >= coarsest_other else coarsest_other + 1e-5
        if worst >= 3 - dims:
            reason += f"; 10th percentile along {'DHW'[worst]}, which is coarse and short"
    reasons["data.spacing"] = reason
    return tuple(float(mm) for mm in target[-dims:])


def _lower(
    request: NetworkRequest, settings: VolumeData, budget: Budget, fingerprint: Fingerprint, reasons: dict[str, str]
) -> NetworkRequest:
    """nnU-Net's low resolution; a spacing that is given has to be one."""
    if len(request.spacing) == 2:
        message = "low is for volumes, not for slices"
        raise ConfigError([Problem("data.resolution", message, hint="data.spatial_dims=3")])
    if settings.spacing is None:
        reasons["data.spacing"] = f"low resolution: a patch covers {COVERED:.0%} of the median case"
        return low_resolution(request, budget)
    full = _spacing(fingerprint, replace(settings, spacing=None), 3, {})
    if math.prod(request.spacing) < 2 * math.prod(full):
        message = f"{by(request.spacing)} mm is no low resolution of data that have {by(full)} mm"
        raise ConfigError([Problem("data.spacing", message, hint="data.resolution=full, or leave data.spacing null")])
    return request


def _normalization(
    fingerprint: Fingerprint, channel_names: Sequence[str], settings: VolumeData, reasons: dict[str, str]
) -> tuple[ChannelNormalization, ...]:
    schemes = [channel_scheme(name, settings.normalization) for name in channel_names]
    if settings.normalization == "auto":
        parts = [f"{name}: {scheme}" for name, scheme in zip(channel_names, schemes, strict=True)]
        reasons["data.normalization"] = f"by channel name, {', '.join(parts)}"
    nonzero = settings.zscore_nonzero
    if nonzero is not None and "zscore" not in schemes:
        message = f"no channel is normalised by zscore, but by {', '.join(schemes)}: it would have no effect"
        raise ConfigError([Problem("data.zscore_nonzero", message, "drop it, or set data.normalization=zscore")])
    if nonzero is None:
        nonzero = fingerprint.relative_crop < NONZERO_BELOW
        if "zscore" in schemes:
            share = f"{1 - fingerprint.relative_crop:.0%} of the median scan"
            less = "more" if nonzero else "no more"
            reasons["data.zscore_nonzero"] = f"cropping to non-zero voxels removes {share}, {less} than a quarter"
    entries = []
    for scheme, seen in zip(schemes, fingerprint.channels, strict=True):
        if scheme == "ct":
            entry = ChannelNormalization("ct", seen.percentile_00_5, seen.percentile_99_5, seen.mean, seen.std)
        else:
            entry = ChannelNormalization(scheme, nonzero=nonzero and scheme == "zscore")
        entries.append(entry)
    return tuple(entries)


def channel_scheme(
    channel_name: str, normalization: Literal["auto", "ct", "zscore", "none"] = "auto"
) -> NormalizationScheme:
    """The scheme of a channel: nnU-Net's by name (`CT` -> ct, `noNorm` -> none, else zscore), or the user's."""
    if normalization != "auto":
        return normalization
    lowered = channel_name.lower()
    return "ct" if lowered == "ct" else "none" if lowered == "nonorm" else "zscore"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
