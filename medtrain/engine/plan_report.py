"""A plan as people read it: what the data look like, what follows, why, and what it costs."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medtrain.data.fingerprint import Fingerprint, fingerprint_cases
from medtrain.data.geometry import resampled_shape
from medtrain.engine.cost import StepCost
from medtrain.engine.derive import Derivation
from medtrain.engine.device import memory_gib
from medtrain.engine.memory import available_gib
from medtrain.registry import plain
from medtrain.run.threads import available_threads

_GIB = 2**30
_BYTES = {"image": 2, "label": 1}  # a scan's whole numbers, a class index
_PLANNED = (
    "data.spatial_dims",
    "data.spacing",
    "data.patch_size",
    "data.batch_size",
    "data.normalization",
    "model.channels",
    "model.strides",
    "model.kernel_sizes",
)

Row = tuple[str, str, str]
Section = tuple[str, list[Row]]


def plan_sections(derivation: Derivation, cost: StepCost) -> list[Section]:
    """The report: titles, each with rows of name, value and explanation.

    Args:
        derivation: Of a configuration.
        cost: Of a step.
    """
    sections: list[Section] = [("data", _data(derivation))]
    if derivation.plan.family == "segmentation":
        found: Any = derivation.found
        settings: Any = derivation.settings
        fingerprint = fingerprint_cases(found.dataset, found.split["train"], settings)
        sections.append(("fingerprint of the training part", _fingerprint(fingerprint, derivation)))
        sections.append(("plan", _plan(derivation)))
        sections.append(("network", _network(derivation)))
        disk = _disk(fingerprint, derivation)
    else:
        sections.append(("plan", _plan(derivation)))
        disk = []
    sections.append(("cost", _cost(derivation, cost) + disk))
    return [(title, rows) for title, rows in sections if rows]


def plan_text(sections: Sequence[Section]) -> str:
    """The report as aligned lines.

    Args:
        sections: Of `plan_sections`.
    """
    lines: list[str] = []
    for title, rows in sections:
        wide = max(len(name) for name, _, _ in rows)
        middle = min(34, max(len(value) for _, value, _ in rows))
        lines += ["", title] if lines else [title]
        for name, value, why in rows:
            lines.append(f"  {name:<{wide}}  {value:<{middle}}  {why}".rstrip())
    return "\n".join(lines) + "\n"


def planned_keys(derivation: Derivation) -> dict[str, str]:
    """Why each planned value is what it is, by config key; those that the user gave say so."""
    reasons = {value.key: value.reason for value in derivation.values}
    plan_keys = [key for key in _PLANNED if key.partition(".")[2] in derivation.config[key.partition(".")[0]]]
    if derivation.plan.family != "segmentation":
        plan_keys = []
    own = [value.key for value in derivation.values if value.key.partition(".")[0] in ("data", "model")]
    return {key: reasons.get(key, "given") for key in dict.fromkeys([*plan_keys, *own])}


def planned_notes(derivation: Derivation) -> dict[str, str]:
    """Comments on the planned values of a saved plan, by config key.

    Each names the value that it explains, so that it stays true beside one that was edited since.
    """
    planned = {value.key: value.value for value in derivation.values}
    reasons = planned_keys(derivation)
    return {key: f"planned {_short(planned[key])}: {why}" if key in planned else why for key, why in reasons.items()}


def _data(derivation: Derivation) -> list[Row]:
    config, found = derivation.config["data"], derivation.found
    parts = ", ".join(f"{len(ids)} {part}" for part, ids in found.split.items() if ids)
    fold = config.get("fold")
    how = f"fold {fold} of {config['num_folds']}" if fold is not None and config.get("splits") is None else ""
    rows = [
        ("data set", found.dataset_name, str(config.get("root") or config.get("path") or "")),
        ("cases", parts, how),
    ]
    plan: Any = derivation.plan
    if derivation.plan.family == "segmentation":
        rows.append(("channels", ", ".join(plan.channel_names), ""))
        rows.append(("judged", ", ".join(plan.judged_names), "regions" if plan.regions is not None else "classes"))
    return rows


def _fingerprint(fingerprint: Fingerprint, derivation: Derivation) -> list[Row]:
    shapes, spacings = np.array(fingerprint.shapes), np.array(fingerprint.spacings)
    rows = [
        ("shape, voxels", _by(np.median(shapes, axis=0)), f"D x H x W, median; {_range(shapes)}"),
        ("voxel size, mm", _by(np.median(spacings, axis=0)), f"median; {_range(spacings)}"),
        ("non-zero box", f"{fingerprint.relative_crop:.0%}", "of the median scan's voxels"),
        ("anisotropy", *_anisotropy(np.median(spacings, axis=0))),
    ]
    plan: Any = derivation.plan
    for name, seen in zip(plan.channel_names, fingerprint.channels, strict=True):
        span = f"{seen.percentile_00_5:.4g} .. {seen.percentile_99_5:.4g}"
        why = f"mean {seen.mean:.4g}, std {seen.std:.4g}, median {seen.median:.4g}; 0.5 to 99.5 % of labelled voxels"
        rows.append((f"intensities, {name}", span, why))
    total = sum(fingerprint.class_voxels) or 1
    for name, count in list(zip(plan.class_names, fingerprint.class_voxels, strict=False))[1:]:
        rows.append((f"voxels of {name}", f"{count / total:.3%}", "of all labelled scans"))
    return rows


def _anisotropy(spacing: np.ndarray) -> tuple[str, str]:
    ratio = float(spacing.max() / spacing.min())
    worst = "DHW"[int(spacing.argmax())]
    return f"{ratio:.2f}", "voxels are cubes" if ratio < 1.01 else f"coarsest along {worst}"


def _plan(derivation: Derivation) -> list[Row]:
    values = {value.key: value.value for value in derivation.values}
    rows = []
    for key, why in planned_keys(derivation).items():
        group, _, name = key.partition(".")
        value = values.get(key, derivation.config[group].get(name))
        rows.append((key, _short(value), why))
    return rows


def _network(derivation: Derivation) -> list[Row]:
    plan: Any = derivation.plan
    channels = derivation.config["model"].get("channels")
    if channels is None or len(channels) != len(plan.strides):
        return []
    rows: list[Row] = []
    size = list(plan.patch_size)
    mm = list(plan.spacing)
    for index, (width, stride, kernel) in enumerate(zip(channels, plan.strides, plan.kernel_sizes, strict=True)):
        size = [-(-n // step) for n, step in zip(size, stride, strict=True)]
        mm = [old * step for old, step in zip(mm, stride, strict=True)]
        what = f"{_by(mm)} mm, stride {_by(stride)}, kernel {_by(kernel)}"
        rows.append((f"stage {index}", f"{width} x {_by(size)}", what))
    return rows


def _cost(derivation: Derivation, cost: StepCost) -> list[Row]:
    device = derivation.device
    if derivation.gpu_gib is not None:
        free, what = derivation.gpu_gib, f"a GPU with {derivation.gpu_gib:g} GiB, as --gpu says"
    else:
        free = available_gib(device)
        what = f"{available_threads()} threads" if device.type == "cpu" else device.type
        what = f"{what}, {memory_gib(device):.1f} GiB of memory, {free:.1f} free"
    rows = [
        ("device", device.type, what),
        ("parameters", f"{cost.parameters / 1e6:.2f} M", "trainable"),
    ]
    if cost.macs is not None:
        rows.append(("operations", f"{cost.macs / 1e9:.1f} G multiply-adds", "forward pass of a batch"))
    if cost.memory is not None:
        fits = "" if cost.memory.gib <= free else "; MORE THAN IS FREE"
        rows.append(("memory", f"{cost.memory.gib:.2f} GiB", f"estimated: {cost.memory}{fits}"))
    if cost.peak_gib is not None:
        rows.append(("memory, measured", f"{cost.peak_gib:.2f} GiB", "peak of the measured steps"))
    rows.append(("step", "-" if cost.seconds is None else f"{cost.seconds:.3g} s", cost.how))
    steps = derivation.config["trainer"]["max_steps"]
    if cost.seconds is not None and steps:
        seconds = steps * cost.seconds * derivation.config["trainer"]["accumulate"]
        rows.append(("training", _duration(seconds), f"{steps} steps, without evaluations"))
    return rows


def _disk(fingerprint: Fingerprint, derivation: Derivation) -> list[Row]:
    """Room for the prepared cases: what they take before they are compressed."""
    plan: Any = derivation.plan
    cases = sum(len(ids) for ids in derivation.found.split.values())
    voxels = []
    for shape, spacing in zip(fingerprint.shapes, fingerprint.spacings, strict=True):
        target = (spacing[0], *plan.spacing) if len(plan.spacing) == 2 else plan.spacing
        voxels.append(math.prod(resampled_shape(shape, spacing, target)))
        voxels[-1] = voxels[-1] * (_BYTES["image"] * plan.in_channels + _BYTES["label"])
        voxels[-1] += math.prod(shape) * _BYTES["label"]
    needed = float(np.mean(voxels)) * cases / _GIB
    store = Path(derivation.config["data"]["store"])
    place = store
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free / _GIB
    return [
        (
            "store",
            f"< {needed:.2g} GiB",
            f"{cases} cases, before compression; {free:.1f} GiB free at {_relative(store)}",
        )
    ]


def _relative(path: Path) -> str:
    text = os.path.relpath(path)
    return str(path) if text.startswith("..") else text


def _range(values: np.ndarray) -> str:
    low, high = values.min(axis=0), values.max(axis=0)
    return "all alike" if (low == high).all() else f"from {_by(low)} to {_by(high)}"


def _by(numbers: Iterable[Any]) -> str:
    return " x ".join(f"{float(number):.4g}" for number in numbers)


def _short(value: Any) -> str:
    value = plain(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        return ", ".join("x".join(str(number) for number in item) for item in value)
    if isinstance(value, list):
        return "[" + ", ".join(_short(item) for item in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
