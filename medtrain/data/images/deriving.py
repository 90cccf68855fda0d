"""What follows from the images of a set, its table and the machine."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medtrain.data.image_sets import read_sample_image
from medtrain.data.images.events import find_event_times
from medtrain.data.images.found import FoundImages
from medtrain.data.images.plan import ImageFormat, ImagePlan, TargetPlan
from medtrain.data.images.reading import REDUCED_ABOVE, read_for
from medtrain.data.io.images import window_of
from medtrain.data.sample import ImageRef, Sample
from medtrain.data.source import Machine, Progress
from medtrain.data.tabular import fit_tabular
from medtrain.data.workers import usable_cores
from medtrain.errors import ConfigError, DataError, Problem
from medtrain.models.lung_zones import opposite_zones
from medtrain.models.pretrained import PretrainedInput, pretrained_input

if TYPE_CHECKING:
    from medtrain.data.images.settings import ImageData

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MEASURED = 64  # training images that sizes and intensities are taken from
_SIZE = 224
_CPU_PIXELS = 32 * 224**2  # of a forward pass
_GPU_PIXELS_PER_GIB = 4 * 224**2  # half of what a ResNet-50 in half precision takes
_MAX_BATCH = {"cpu": 64, "cuda": 128, "mps": 64}
_MIN_BATCHES = 8  # of an epoch
_SLOW_BYTES = 2**16  # of an image, above which decoding takes much longer than opening
_LOSSLESS = 0.2  # part of its bytes that an image packed without loss takes at least
_MOST_COPIED = 20 * 2**30  # bytes of all images, of which copies are made without being asked for
_MAX_VOXELS = {"cpu": 48**3, "cuda": 128**3, "mps": 64**3}
_MAX_EXTENT = 160

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What some training images are like.

    Args:
        refs: Those that can be read.
        shapes: (H, W) or (D, H, W) of each.
        channels: Of each.
        slow: Whether each takes longer to decode than 8 bits of its size would.
    """

    refs: tuple[ImageRef, ...]
    shapes: tuple[tuple[int, ...], ...]
    channels: tuple[int, ...]
    slow: tuple[bool, ...]

    @property
    def sizes(self) -> list[tuple[Path, int]]:
        """Files, each with the bytes of its image of 8 bits."""
        rows = zip(self.refs, self.shapes, self.channels)
        return [(ref, math.prod(shape) * n) for ref, shape, n in rows if isinstance(ref, Path)]

    @property
    def median(self) -> tuple[int, ...]:
        """Median shape of the images with the commonest number of axes."""
        dims = self.spatial_dims
        return tuple(int(n) for n in np.median([s for s in self.shapes if len(s) == dims], axis=0))

    @property
    def spatial_dims(self) -> int:
        """What most of the images have."""
        return int(np.median([len(shape) for shape in self.shapes]))


def measure(found: FoundImages, progress: Progress | None = None) -> Measured | None:
    """Look at some images of the training part, evenly spread; None where there are none.

    Raises:
        DataError: None of them can be read.
    """
    refs = [ref for sample in found.samples("train") for ref in sample.images if ref is not None]
    refs = list(dict.fromkeys(refs))
    if not refs:
        return None
    chosen = [refs[i * len(refs) // _MEASURED] for i in range(_MEASURED)] if len(refs) > _MEASURED else refs
    problems: list[Problem] = []
    rows: list[tuple[ImageRef, tuple[int, ...], int, bool]] = []
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="images") as pool:
        for done, (ref, result) in enumerate(zip(chosen, pool.map(_look, chosen)), start=1):
            if isinstance(result, Problem):
                problems.append(result)  # preparing tells of every one
            else:
                rows.append((ref, *result))
            if progress is not None:
                progress(done, len(chosen), str(ref).removeprefix(f"{found.sample_set.root}/"))
    if not rows:
        raise DataError(problems, heading="no image can be read:")
    refs_, shapes, channels, slow = zip(*rows)
    return Measured(refs_, shapes, channels, slow)


def make_image_plan(
    found: FoundImages,
    settings: ImageData,
    machine: Machine,
    *,
    model: Mapping[str, Any],
    progress: Progress | None = None,
) -> tuple[ImagePlan, bool]:
    """Derive what the user left open.

    Returns:
        The plan, and whether copies of the images are worth their room.

    Raises:
        ConfigError: Settings contradict each other or the data.
        DataError: Images cannot be read, or a column is empty.
    """
    reasons: dict[str, str] = {}
    measured = measure(found, progress)
    train = found.samples("train")
    sample_set = found.sample_set
    window = window_of(settings.window) if settings.window is not None else None
    tabular = None
    if sample_set.numeric_names or sample_set.categorical_names:
        tabular = fit_tabular(
            train,
            numeric=sample_set.numeric_names,
            categorical=sample_set.categorical_names,
            missing=settings.missing_numbers,
        )
    expected = pretrained_input(model)
    image_format = _format(measured, settings, machine, window, expected, reasons)
    instances = _max_instances(found, settings, machine, image_format, reasons)
    views = len(sample_set.view_names) or instances or 1
    batch_size = settings.batch_size or _batch_size(machine, image_format, len(train), views, reasons)
    mean, std = _normalization(measured, settings, image_format, model, expected, reasons)
    single = not sample_set.view_names and not sample_set.bags
    pairs = _pairs(found, settings, reasons)
    copies = (
        settings.cache
        if settings.cache is not None
        else _worth_copies(measured, image_format, len(found.images()), reasons)
    )
    plan = ImagePlan(
        spatial_dims=image_format.spatial_dims,
        image_size=image_format.image_size,
        in_channels=image_format.in_channels,
        batch_size=batch_size,
        mean=mean,
        std=std,
        view_names=tuple(sample_set.view_names),
        max_instances=instances,
        numeric_names=tabular.numeric_names if tabular else (),
        category_sizes=tuple(state.num_codes for state in tabular.categorical) if tabular else (),
        tabular=tabular,
        targets=tuple(_target(found, index, train) for index in range(len(sample_set.targets))),
        optional_image=measured is not None and single and any(not _images(sample) for sample in found.used()),
        annotated=_annotated(found, single and measured is not None),
        window=window,
        scaling=settings.scaling,
        metadata_names=tuple(sample_set.metadata_names),
        paired_targets=pairs,
        event_times=find_event_times(sample_set.targets, train),
        reasons=reasons,
    )
    return plan, copies


def _look(ref: ImageRef) -> tuple[tuple[int, ...], int, bool] | Problem:
    try:
        image = read_sample_image(ref)
    except DataError as error:
        return error.problems[0]
    return image.array.shape[1:], len(image.array), image.array.dtype != np.uint8


def _images(sample: Sample) -> list[ImageRef]:
    return [ref for ref in sample.images if ref is not None]


def _annotated(found: FoundImages, single: bool) -> bool:
    annotated = any(sample.annotation is not None for sample in found.used())
    if annotated and not single:
        message = "annotations are of single images, but the samples have views, bags or no image"
        raise ConfigError([Problem("data.annotation", message, "data.annotation=null")])
    return annotated


def _format(
    measured: Measured | None,
    settings: ImageData,
    machine: Machine,
    window: tuple[float, float] | None,
    expected: PretrainedInput,
    reasons: dict[str, str],
) -> ImageFormat:
    if measured is None:
        return ImageFormat(2, (), 0)
    dims = measured.spatial_dims
    channels = settings.channels
    if channels is None:
        channels = max(measured.channels)
        kinds = {1: "grey", 3: "colour"}
        shown = " and ".join(kinds.get(n, f"{n}-channel") for n in sorted(set(measured.channels)))
        reasons["data.channels"] = f"the images are {shown}"
    given = settings.image_size
    if given is None:
        size = _volume_size(measured, machine, reasons) if dims == 3 else _picture_size(measured, expected, reasons)
    else:
        size = (given,) * dims if isinstance(given, int) else tuple(given)
    if len(size) != dims:
        message = f"{len(size)} values, but the images have {dims} axes ({'D, H, W' if dims == 3 else 'H, W'})"
        raise ConfigError([Problem(where="data.image_size", message=message)])
    return ImageFormat(dims, size, channels, window, settings.scaling)


def _picture_size(measured: Measured, expected: PretrainedInput, reasons: dict[str, str]) -> tuple[int, int]:
    if expected.size is not None:
        reasons["data.image_size"] = f"{expected.size_reason}; the images have {_shown(measured.median)}"
        return expected.size
    if len(set(measured.shapes)) == 1 and max(measured.median) <= _SIZE:
        height, width = measured.median
        reasons["data.image_size"] = f"every image looked at has {height} x {width} pixels"
        return height, width
    short = min(measured.median)
    if short >= _SIZE:
        reasons["data.image_size"] = f"what most networks were trained with; the images have {_shown(measured.median)}"
        return _SIZE, _SIZE
    side = max(32, short // 32 * 32)
    reasons["data.image_size"] = f"the median image has {_shown(measured.median)} pixels"
    return side, side


def _volume_size(measured: Measured, machine: Machine, reasons: dict[str, str]) -> tuple[int, ...]:
    most = _MAX_VOXELS[machine.device]
    extent = [float(min(n, _MAX_EXTENT)) for n in measured.median]
    while math.prod(extent) > most:  # the longest axis first: short ones are coarse already
        extent[int(np.argmax(extent))] *= 0.95
    size = tuple(max(1, round(n / 8) * 8) if n >= 8 else int(n) for n in extent)
    reasons["data.image_size"] = f"the median volume has {_shown(measured.median)} voxels"
    if math.prod(measured.median) > most:
        reasons["data.image_size"] += f", which is more than {machine.device} trains with in reasonable time"
    return size


def _shown(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


def _pixels(machine: Machine) -> float:
    """Of a forward pass."""
    if machine.device == "cpu":
        return _CPU_PIXELS
    return max(_CPU_PIXELS, _GPU_PIXELS_PER_GIB * machine.memory_gib)


def _max_instances(
    found: FoundImages, settings: ImageData, machine: Machine, image_format: ImageFormat, reasons: dict[str, str]
) -> int | None:
    if not found.sample_set.bags:
        return None
    if settings.max_instances is not None:
        return settings.max_instances
    largest = max((len(_images(sample)) for sample in found.samples("train")), default=1)
    room = max(8, int(_pixels(machine) // math.prod(image_format.image_size)))
    if largest <= room:
        reasons["data.max_instances"] = "the largest bag of the training part, so that none is cut"
        return max(1, largest)
    reasons["data.max_instances"] = (
        f"as many as are trained at a time on {machine.device}; larger bags (up to {largest}) are drawn from anew in "
        "each epoch, which loses the label of bags with few positive instances"
    )
    return room


def _batch_size(machine: Machine, image_format: ImageFormat, count: int, views: int, reasons: dict[str, str]) -> int:
    pixels = math.prod(image_format.image_size) if image_format.image_size else 1
    room = _pixels(machine) / (pixels * views)
    few = count / _MIN_BATCHES
    most = _MAX_BATCH[machine.device]
    size = min(float(most), room, max(4.0, few))
    size = max(1, 2 ** int(math.log2(max(1.0, size))))
    if room <= min(most, few):
        reasons["data.batch_size"] = f"what fits {machine.device} well at {views} x {_shown(image_format.image_size)}"
    elif few < most:
        reasons["data.batch_size"] = f"{count} training samples make {-(-count // size)} batches an epoch"
    else:
        reasons["data.batch_size"] = "the images are small"
    return size


def _normalization(
    measured: Measured | None,
    settings: ImageData,
    image_format: ImageFormat,
    model: Mapping[str, Any],
    expected: PretrainedInput,
    reasons: dict[str, str],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    channels = image_format.in_channels
    scheme: str = settings.normalization
    if measured is None:
        return (), ()
    told = expected.normalization(channels)
    if scheme == "auto" and told is not None:
        reasons["data.normalization"] = expected.mean_reason
        return told
    if scheme == "auto":
        pretrained = model.get("weights") or model.get("pretrained")
        scheme = "imagenet" if pretrained and channels in (1, 3) else "dataset"
        why = {
            "imagenet": "imagenet: pretrained weights expect its mean and deviation",
            "dataset": f"dataset: mean and deviation of {len(measured.refs)} training images",
        }
        reasons["data.normalization"] = why[scheme]
    if scheme == "dataset":
        return _statistics(measured, image_format)
    if scheme == "imagenet":
        if channels == 3:
            return IMAGENET_MEAN, IMAGENET_STD
        if channels != 1:
            message = f"imagenet is for 1 or 3 channels, and the images have {channels}"
            raise ConfigError([Problem(where="data.normalization", message=message, hint="choose dataset or half")])
        return (round(sum(IMAGENET_MEAN) / 3, 6),), (round(sum(IMAGENET_STD) / 3, 6),)
    value = 0.5 if scheme == "half" else 0.0
    return (value,) * channels, (value or 1.0,) * channels


def _statistics(measured: Measured, image_format: ImageFormat) -> tuple[tuple[float, ...], tuple[float, ...]]:
    def sums(ref: ImageRef) -> np.ndarray | None:
        try:
            array = read_for(image_format, ref)
        except DataError:  # preparing tells of every one
            return None
        values = array.reshape(-1, array.shape[-1]) / (255.0 if array.dtype == np.uint8 else 1.0)
        return np.stack([values.mean(axis=0, dtype=np.float64), (values.astype(np.float64) ** 2).mean(axis=0)])

    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="images") as pool:
        found = [row for row in pool.map(sums, measured.refs) if row is not None]
    if not found:
        return (0.5,) * image_format.in_channels, (0.5,) * image_format.in_channels
    mean, square = np.mean(found, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 1e-6))
    return tuple(round(float(x), 6) for x in mean), tuple(round(float(x), 6) for x in std)


def _worth_copies(measured: Measured | None, image_format: ImageFormat, count: int, reasons: dict[str, str]) -> bool:
    if measured is None:
        return False
    if image_format.spatial_dims == 3:
        reasons["data.cache"] = "volumes are read and resized once"
        return True
    large = [
        min(h / image_format.image_size[0], w / image_format.image_size[1]) > REDUCED_ABOVE
        for h, w in (shape for shape in measured.shapes if len(shape) == 2)
    ]
    if 2 * sum(large) > len(large):
        reasons["data.cache"] = f"images of {_shown(measured.median)} are decoded and made smaller once"
        return True
    if any(measured.slow):
        reasons["data.cache"] = "images of more than 8 bits are scaled once"
        return True
    packed = [(path.stat().st_size, size) for path, size in measured.sizes if size >= _SLOW_BYTES]
    # JPEG is several times smaller than what is packed without loss, and its copies would be, too
    lossless = sum(stored > _LOSSLESS * size for stored, size in packed)
    if 2 * lossless > len(measured.shapes) and count * max(size for _, size in packed) <= _MOST_COPIED:
        reasons["data.cache"] = "files packed without loss, as PNG, take several times as long to read as their copies"
        return True
    reasons["data.cache"] = "the images are read as fast as copies of them"
    return False


def _target(found: FoundImages, index: int, train: Sequence[Sample]) -> TargetPlan:
    target = found.sample_set.targets[index]
    values = [value for sample in train if (value := sample.targets[index]) is not None]
    if target.classes is not None:
        counts = np.bincount(np.array(values, dtype=np.int64), minlength=len(target.classes))
        return TargetPlan(target.target_name, tuple(target.classes), tuple(int(n) for n in counts))
    numbers = np.array(values, dtype=np.float64)
    if not len(numbers):
        return TargetPlan(target.target_name, None)
    mean, std = float(numbers.mean()), float(numbers.std())
    constant = std <= 1e-12 * max(1.0, abs(mean))
    return TargetPlan(target.target_name, None, (), mean, 1.0 if constant else std)


_SIDES = {"left": "right", "right": "left"}
_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)


def _pairs(found: FoundImages, settings: ImageData, reasons: dict[str, str]) -> tuple[tuple[int, int], ...]:
    """Indices of targets that change places with left and right."""
    names = [target.target_name for target in found.sample_set.targets]
    index = {name: position for position, name in enumerate(names)}
    if settings.paired_targets is None:
        pairs = []
        for name in names:
            other = _SIDE.sub(lambda match: _SIDES[match[1].lower()], name)
            if other != name and other in index and index[name] < index[other]:
                pairs.append((name, other))
        if pairs:
            reasons["data.paired_targets"] = "their names differ in left and right"
        paired = {name for pair in pairs for name in pair}
        zones = [pair for pair in opposite_zones(names) if not paired & set(pair)]
        if zones:
            reasons["data.paired_targets"] = "they are called as the same zone of the right and the left lung"
            pairs += zones
    else:
        pairs = [(first, second) for first, second in settings.paired_targets]
    problems = [
        Problem("data.paired_targets", f"there is no target {name!r}; there are {', '.join(names)}")
        for pair in pairs
        for name in pair
        if name not in index
    ]
    flat = [name for pair in pairs for name in pair]
    problems += [
        Problem("data.paired_targets", f"{name!r} is in several pairs")
        for name in dict.fromkeys(flat)
        if flat.count(name) > 1
    ]
    targets = found.sample_set.targets
    for first, second in pairs:
        if first in index and second in index and targets[index[first]].classes != targets[index[second]].classes:
            problems.append(Problem("data.paired_targets", f"{first!r} and {second!r} have different classes"))
    if problems:
        raise ConfigError(problems)
    return tuple((index[first], index[second]) for first, second in pairs)
