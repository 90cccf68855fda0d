"""The manifest of an exported network: everything a stranger needs to run it on a scan.

It lies beside the files and, without the list of files, inside each of them. It holds numbers, not references:
nothing of medtrain, of the run or of the data set has to be at hand.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import medtrain
from medtrain.data.geometry import ANISOTROPY_THRESHOLD
from medtrain.data.plan import ChannelNormalization, Plan
from medtrain.export.formats import INPUT_NAME, OUTPUT_NAME
from medtrain.export.types import ExportedFile, TrainedRun
from medtrain.inference.postprocess import find_structures

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1
SCRIPT_NAME = "predict.py"
FIRST_STAGE = "first_stage_"
SCRIPT_PACKAGES = ("numpy", "scipy", "nibabel", "onnxruntime")
"""All that the script needs beside Python."""

_DIFFERENCES = {"bf16": 0.01, "fp16": 0.001, "tf32": 0.001}
"""Of probabilities, from float32: as was seen with bfloat16; the others keep three bits more."""


def describe_origin(loaded: TrainedRun) -> dict[str, Any]:
    """What every manifest begins with: where the network comes from."""
    return {
        "format": "medtrain-export",
        "format_version": MANIFEST_VERSION,
        "medtrain_version": medtrain.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "task": loaded.config["task"]["name"],
        "model": {
            "name": loaded.config["model"]["name"],
            "parameters": sum(p.numel() for p in loaded.model.parameters()),
        },
        "training": _training(loaded),
    }


def describe_precision(config: Mapping[str, Any]) -> dict[str, str]:
    """In what the run predicts and in what the files compute, and what that makes of a difference.

    Args:
        config: The run's configuration.
    """
    name = config["trainer"]["precision"]
    told = "the run predicts in float32, too"
    if name in _DIFFERENCES:
        differ = f"probabilities may differ by {_DIFFERENCES[name]}"
        told = f"the run predicts in {name} and the files in float32: {differ}"
    return {"run": name, "files": "fp32", "is": told}


def describe(loaded: TrainedRun) -> dict[str, Any]:
    """Describe how to use a network that segments.

    Args:
        loaded: The run the weights come from.

    Returns:
        JSON-able data; `recipe` says in words what the numbers are for.
    """
    plan = loaded.plan
    window = _window(loaded.config["inference"], plan)
    body = any(channel.nonzero for channel in plan.normalization)
    return {
        **describe_origin(loaded),
        "input": {
            "name": INPUT_NAME,
            "shape": ["batch", plan.input_channels, *plan.patch_size],
            "axes": ["B", "C", *_axes(plan)],
            "dtype": "float32",
            "channels": [
                {"index": index, "name": name, "normalization": _normalization(normalization, body)}
                for index, (name, normalization) in enumerate(zip(plan.channel_names, plan.normalization, strict=True))
            ],
        },
        "output": {
            "name": OUTPUT_NAME,
            "shape": ["batch", plan.num_outputs, *plan.patch_size],
            "axes": ["B", "K", *_axes(plan)],
            "dtype": "float32",
            "meaning": "logits; the class of a voxel is the index of the largest one along K"
            if plan.regions is None
            else "logits, one per region; a region holds the voxels where its logit is above 0",
        },
        "labels": [
            {"index": index, "name": name, "value": value}
            for index, (name, value) in enumerate(zip(plan.class_names, plan.label_values, strict=True))
        ],
        "regions": _regions(plan),
        "first_stage": _first_stage(plan),
        "ignore_index": plan.ignore_index,
        "geometry": _geometry(plan),
        "sliding_window": window,
        "postprocessing": {
            "keep_largest_component_of": _kept(plan, loaded.config["inference"]["keep_largest"]),
            "neighbours": "voxels that touch by a face, an edge or a corner; the first in array order of equals stays",
        },
        "recipe": _recipe(plan, window),
    }


def first_stage_folders(plan: Plan) -> list[str]:
    """Folders of an export that hold the networks of the first stage of a cascade."""
    return [] if plan.cascade is None else [f"{FIRST_STAGE}{index}" for index in range(len(plan.cascade.members))]


def _first_stage(plan: Plan) -> dict[str, Any] | None:
    """What the networks before this one are, and how their label map becomes channels; None where there are none."""
    if plan.cascade is None:
        return None
    return {
        "folders": first_stage_folders(plan),
        "decide": "their manifests say how each is used; of several the mean of the probabilities counts, window by "
        "window, with sliding_window and postprocessing of the first",
        "resampling": "the label map on the scan's own grid is cropped to this network's box and resampled to its "
        "grid: each class's indicator linearly, then the largest, before the background where equal",
        "channels": [
            {"index": plan.in_channels + place, "classes": list(members), "value": "1 inside, 0 outside"}
            for place, members in enumerate(plan.cascade.structures)
        ],
    }


def _kept(plan: Plan, names: Sequence[str]) -> list[dict[str, Any]]:
    """Of which classes together, none for all, only the largest component stays, and what becomes of the others."""
    structures = find_structures(names, plan.class_names, plan.named_regions)
    return [
        {"name": name, "classes": list(structure.classes), "becomes": structure.becomes}
        for name, structure in zip(names, structures, strict=True)
    ]


def _regions(plan: Plan) -> list[dict[str, Any]] | None:
    """The regions in the order of painting; None where outputs are classes."""
    if plan.regions is None:
        return None
    return [
        {"output": output, "name": name, "classes": sorted(members), "painted_with": members[0]}
        for output, (name, members) in enumerate(zip(plan.region_names, plan.regions, strict=True))
    ]


def _training(loaded: TrainedRun) -> dict[str, Any]:
    return {
        "run": loaded.run_dir.name,
        "experiment": loaded.run_dir.parent.name,
        "step": loaded.step,
        "weights": loaded.weights,
        "seed": loaded.config["seed"],
        "data": loaded.config["data"]["name"],
        "fold": loaded.config["data"].get("fold"),
        "metrics": dict(loaded.metrics),
        **_hashes(loaded.run_dir),
    }


def _hashes(run_dir: Path) -> dict[str, Any]:
    """What identifies the training data, as the run noted it when it began."""
    try:
        noted = json.loads((run_dir / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # stopped before it began to train, or copied without this file
        noted = {}
    return {key: noted.get(key) for key in ("data_hash", "split_hash")}


def _normalization(channel: ChannelNormalization, body: bool) -> dict[str, Any]:
    """The numbers of one channel, only those that its scheme uses; with `body` any channel is 0 outside the body."""
    rule: dict[str, Any] = {"scheme": channel.scheme, "formula": "x"}
    if channel.scheme == "ct":
        numbers = {"lower": channel.lower, "upper": channel.upper, "mean": channel.mean, "std": channel.std}
        rule |= {**numbers, "formula": "(clip(x, lower, upper) - mean) / std"}
    elif channel.scheme == "zscore":
        # one channel that looks at the body makes the statistics of all channels those of the body
        region = "the body (see geometry.body)" if body else "all voxels"
        rule |= {"formula": "(x - mean) / std", "mean_and_std_of": f"{region} of the cropped scan before resampling"}
        rule["statistics_region"] = "body" if body else "all"
    if channel.nonzero and channel.scheme != "none":
        rule["outside_the_body"] = 0
    return rule


def _geometry(plan: Plan) -> dict[str, Any]:
    return {
        "spatial_dims": plan.spatial_dims,
        "axes": {"D": "inferior to superior", "H": "posterior to anterior", "W": "left to right"},
        "orientation": "SAR",
        "spacing_mm": list(plan.spacing),
        "crop": "bounding box of the voxels that are not 0 in any channel",
        "body": "voxels that are not 0 in any channel, with enclosed holes filled",
        "resampling": {
            "image_order": 3,
            "rounding": "scans stored as whole numbers (slope and intercept too, all channels in int16) are rounded "
            "to whole numbers within int16 after resampling",
            "logits_order": 1,
            "coordinates": "x_in = (x_out + 0.5) * n_in / n_out - 0.5, the nearest value outside",
            "anisotropy_threshold": ANISOTROPY_THRESHOLD,
            "order_along_coarse_axis": 0,
        },
    }


def _window(inference: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    scale = inference["sigma_scale"]
    axes = inference["mirror_axes"]
    mirrored = list(range(plan.spatial_dims)) if axes is None else list(axes)
    return {
        "patch_size": list(plan.patch_size),
        "overlap": inference["overlap"],
        "starts": "per axis of `size` voxels after padding: round(i * (size - patch) / (count - 1)) for i = 0 .. "
        "count - 1, halves to the even number; count = ceil((size - patch) / max(patch * (1 - overlap), 1)) + 1; "
        "[0] where size = patch",
        "gaussian_sigma_scale": scale,
        "weight_per_axis": "max(exp(-0.5 * (linspace(-1, 1, patch) / (2 * gaussian_sigma_scale))^2), weight_floor)",
        "weight_floor": 1e-4,
        "mirror_axes": mirrored if inference["mirror"] else [],
        "padding": "zeros on both sides, half each, where the image is smaller than the patch",
    }


def _recipe(plan: Plan, window: Mapping[str, Any]) -> list[str]:
    axes = ", ".join(_axes(plan))
    mirrored = (
        "Average the logits over every combination of flips along mirror_axes."
        if window["mirror_axes"]
        else "No test-time flips."
    )
    per_slice = " Run slice by slice along D." if plan.spatial_dims == 2 else ""
    return [
        "Reorient the scan to RAS (nibabel.as_closest_canonical) and transpose each channel to [D, H, W] = [z, y, x].",
        "Crop to geometry.crop and remember the box.",
        f"Resample {axes} to geometry.spacing_mm with splines of order 3; when the scan's largest spacing (or else the "
        "target's) is more than anisotropy_threshold times its smallest, take the nearest sample along that axis.",
        "Normalise every channel by input.channels[].normalization.",
        *(["Append the channels of first_stage."] if plan.cascade is not None else []),
        f"Cut windows of patch_size over [{axes}] at sliding_window.starts, the last one ending at the border."
        + per_slice,
        f"Feed each window as {INPUT_NAME} [B, C, {axes}]. {mirrored}",
        "Blend the windows' logits with the product of weight_per_axis and divide by the sum of weights.",
        f"Resample the logits linearly to the size of the box and {_decision(plan)}.",
        "Put the result into the box, 0 elsewhere, and keep the components named by postprocessing.",
        "Replace every index by labels[].value and undo the reorientation.",
    ]


def _decision(plan: Plan) -> str:
    if plan.regions is None:
        return "take the index of the largest one"
    return "begin with 0 and give the voxels of every region, one after the other, the index painted_with (regions)"


def describe_script(path: Path, *, usage: str, needs: Sequence[str]) -> dict[str, Any]:
    """The manifest's entry of the script that follows the recipe."""
    content = path.read_bytes()
    return {
        "file": path.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "usage": usage,
        "needs": list(needs),
    }


def describe_file(file: ExportedFile) -> dict[str, Any]:
    """The manifest's entry of an exported file, with the verdict on it."""
    return {
        "file": file.path.name,
        "format": file.format,
        "bytes": file.size_bytes,
        "sha256": file.sha256,
        "producer": dict(file.producer),
        "parity": {
            "passed": file.passed,
            "tolerance": file.tolerance,
            "tolerance_is": "relative to the largest logit of an input, absolute where that is below 1",
            "inputs": [
                {
                    "kind": result.kind,
                    "batch_size": result.batch_size,
                    "max_abs_error": result.max_abs_error,
                    "allowed": result.allowed,
                    "label_agreement": result.label_agreement,
                }
                for result in file.parity
            ],
        },
    }


def _axes(plan: Plan) -> tuple[str, ...]:
    return ("D", "H", "W")[-plan.spatial_dims :]
