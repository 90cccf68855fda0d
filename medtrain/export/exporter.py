"""Export a trained network: write it, compare every file with the network in memory, describe how to use it.

The folder appears complete or not at all: everything is written and checked in a temporary folder beside it.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medtrain.errors import MedtrainError, UsageError
from medtrain.export.formats import FORMATS, FileFormat, file_format
from medtrain.export.images import image_subject
from medtrain.export.manifest import (
    FIRST_STAGE,
    MANIFEST_NAME,
    SCRIPT_NAME,
    describe_file,
    describe_script,
    first_stage_folders,
)
from medtrain.export.parity import ParityInput, compare, make_inputs
from medtrain.export.subject import Subject, segmentation_subject
from medtrain.export.types import ExportedFile, TrainedRun
from medtrain.run.atomic import atomic_dir, atomic_write, atomic_write_json, disk_errors

DEFAULT_TOLERANCE = 1e-3
"""Of the largest logit. Other kernels sum in another order. ONNX Runtime adds up the voxels of an instance norm one
after the other in float32, which costs more digits the larger the patch is. A wrong graph is off by the size of the
logits."""


def export_model(
    loaded: TrainedRun,
    formats: Sequence[str],
    out_dir: Path,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    samples: Sequence[tuple[str, Any]] = (),
    first_stage: Sequence[TrainedRun] = (),
    overwrite: bool = False,
) -> list[ExportedFile]:
    """Write the network of a run in one or more formats, with a manifest, and check each file.

    A file of a segmentation takes a normalised float32 patch [B, C, *P] with any batch size B and returns logits
    [B, K, *P]; one of labelled images takes the entries of a batch that the network takes, and returns logits and,
    where it has one, the attention. Beside an ONNX file lies `predict.py`, which does the whole work of
    `medtrain predict` with it and needs neither medtrain nor torch.

    Args:
        loaded: The run.
        formats: Names of FORMATS; duplicates count once.
        out_dir: The folder to make; it must not exist or be empty, unless `overwrite`.
        tolerance: Allowed difference of any logit, relative to the largest logit of an input (absolute below 1), > 0.
        samples: (case id, input) of real cases to compare on, beside random input: a normalised patch [C, *P], or a
            batch of one sample.
        first_stage: Of the second network of a cascade the runs of the first, which get a folder each.
        overwrite: Replace a folder that holds an earlier export and nothing else.

    Returns:
        The files, in the order of `formats`, those of the first stage behind.

    Raises:
        UsageError: A format is unknown, or the folder is in use.
        MissingExtraError: A package is not installed.
        MedtrainError: The network cannot be exported, or a file does not compute the same; nothing is written then.
    """
    chosen = check_request(formats, out_dir, overwrite=overwrite)
    folders = first_stage_folders(loaded.plan) if loaded.plan.family == "segmentation" else []
    assert len(folders) == len(first_stage), "all runs of the first stage, or it cannot be used"
    with disk_errors(out_dir):
        out_dir.parent.mkdir(parents=True, exist_ok=True)
    with atomic_dir(out_dir, existing="replace" if overwrite else "fail") as folder:
        files = _fill(folder, loaded, chosen, samples, tolerance)
        for name, stage in zip(folders, first_stage):
            (folder / name).mkdir()
            files += _fill(folder / name, stage, chosen, (), tolerance)
    return [dataclasses.replace(file, path=out_dir / file.path.relative_to(folder)) for file in files]


def _fill(
    folder: Path,
    loaded: TrainedRun,
    chosen: Sequence[FileFormat],
    samples: Sequence[tuple[str, Any]],
    tolerance: float,
) -> list[ExportedFile]:
    """Write and check the files of one network, with their manifest."""
    network = _prepare(loaded.model, loaded.device)
    subject = make_subject(loaded, network, samples)
    inputs = make_inputs(subject.network, subject.inputs, subject.expected, device=loaded.device)
    embedded = json.dumps(subject.description)
    files = [_export_one(entry, subject, folder, embedded, inputs, loaded.device, tolerance) for entry in chosen]
    _refuse_failures(files)
    listed = {"files": [describe_file(file) for file in files], "scripts": _write_scripts(folder, files, subject)}
    atomic_write_json(folder / MANIFEST_NAME, {**subject.description, **listed})
    return files


def make_subject(loaded: TrainedRun, network: nn.Module, samples: Sequence[tuple[str, Any]]) -> Subject:
    """What is exported, by the family of the data."""
    if loaded.plan.family == "segmentation":
        return segmentation_subject(loaded, network, samples)
    return image_subject(loaded, network, samples)


def check_request(formats: Sequence[str], out_dir: Path, *, overwrite: bool) -> list[FileFormat]:
    """Find out what can be known to fail before anything is loaded; return the formats.

    Raises:
        UsageError: A format is unknown, or the folder is in use.
        MissingExtraError: A package is not installed.
    """
    chosen = [file_format(name) for name in dict.fromkeys(formats)]
    if not chosen:
        raise UsageError("no export format was named", hint="e.g. `--format onnx`")
    for entry in chosen:
        entry.require()
    _check_destination(out_dir, overwrite)
    return chosen


def _check_destination(out_dir: Path, overwrite: bool) -> None:
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise UsageError(f"{out_dir} is a file, the export needs a folder", hint="choose another one with --out DIR")
    names = {path.name for path in out_dir.iterdir()}
    ours = {MANIFEST_NAME, SCRIPT_NAME, *(entry.filename for entry in FORMATS.values())}
    names = {
        name for name in names if not (name.startswith(FIRST_STAGE) and (out_dir / name / MANIFEST_NAME).is_file())
    }
    if names and not (MANIFEST_NAME in names and names <= ours):
        raise UsageError(
            f"{out_dir} holds files that are not an export", hint="choose an empty or new folder with --out DIR"
        )
    if names and not overwrite:
        raise UsageError(
            f"{out_dir} already holds an export", hint="replace it with --overwrite, or choose another --out DIR"
        )


def _prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy to export: eval mode, float32, default memory layout, no gradients, adapters merged into the weights."""
    merge = getattr(model, "merged", None)
    network = merge() if callable(merge) else copy.deepcopy(model)
    network = network.to(device=device, dtype=torch.float32).to(memory_format=torch.contiguous_format)
    return network.eval().requires_grad_(False)


def _export_one(
    entry: FileFormat,
    subject: Subject,
    folder: Path,
    description: str,
    inputs: Sequence[ParityInput],
    device: torch.device,
    tolerance: float,
) -> ExportedFile:
    path = folder / entry.filename
    example = tuple(value.to(device) for value in subject.example)
    producer = entry.write(subject.network, example, path, description, subject.signature)
    parity = compare(entry.load(path, device, subject.signature), inputs, tolerance=tolerance, device=device)
    return ExportedFile(
        entry.name, path, path.stat().st_size, _sha256(path), tolerance, tuple(parity), producer=producer
    )


def _write_scripts(folder: Path, files: Sequence[ExportedFile], subject: Subject) -> list[dict[str, Any]]:
    """Put the ready script beside an ONNX file; the other formats need torch, for which it was not written."""
    script = subject.script
    if script is None or not any(file.format == "onnx" for file in files):
        return []
    template = importlib.resources.files("medtrain.export") / script.resource
    atomic_write(folder / SCRIPT_NAME, template.read_bytes())
    return [describe_script(folder / SCRIPT_NAME, usage=script.usage, needs=script.needs)]


def _refuse_failures(files: Sequence[ExportedFile]) -> None:
    failed = [file for file in files if not file.passed]
    if not failed:
        return
    lines = [
        f"{file.format}: the exported file differs from the network by {file.worst.max_abs_error:.3g} "
        f"on {file.worst.kind} input, allowed is {file.worst.allowed:.3g}"
        for file in failed
    ]
    raise MedtrainError(
        "\n".join([*lines, "nothing was written"]),
        hint="choose another format, or allow more with --tolerance if the difference does not matter to you",
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
