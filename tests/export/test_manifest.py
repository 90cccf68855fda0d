"""The manifest says what a stranger needs, and a stranger with numpy and onnxruntime gets medtrain's result."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import medtrain
from medtrain.export.exporter import export_model
from medtrain.inference.whole_case import predict_logits


def _manifest(run: Any, out: Path, formats: tuple[str, ...] = ("torchscript",)) -> dict[str, Any]:
    export_model(run, formats, out)
    return json.loads((out / "manifest.json").read_text())


def test_the_numbers_of_the_plan_are_in_it(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run()
    (run.run_dir / "data.json").write_text('{"data_hash": "1f2e", "split_hash": "9abc", "cases": {}}')
    manifest = _manifest(run, tmp_path / "out")

    assert manifest["format"] == "medtrain-export"
    assert manifest["format_version"] == 1
    assert manifest["medtrain_version"] == medtrain.__version__
    assert manifest["task"] == "segmentation"
    assert manifest["input"]["shape"] == ["batch", 2, 6, 8, 10]
    assert manifest["output"]["shape"] == ["batch", 3, 6, 8, 10]
    assert [channel["name"] for channel in manifest["input"]["channels"]] == ["CT", "PET"]
    ct, pet = (channel["normalization"] for channel in manifest["input"]["channels"])
    assert (ct["scheme"], ct["lower"], ct["upper"], ct["mean"], ct["std"]) == ("ct", -100.0, 240.0, 80.5, 39.25)
    assert pet["scheme"] == "zscore"
    assert pet["mean_and_std_of"] == "the body (see geometry.body) of the cropped scan before resampling"
    assert pet["outside_the_body"] == 0
    assert "outside_the_body" not in ct
    assert manifest["labels"] == [
        {"index": 0, "name": "background", "value": 0},
        {"index": 1, "name": "liver", "value": 2},
        {"index": 2, "name": "cancer", "value": 7},
    ]
    assert manifest["geometry"]["spacing_mm"] == [2.5, 0.75, 0.75]
    assert manifest["geometry"]["resampling"]["image_order"] == 3
    assert manifest["sliding_window"]["patch_size"] == [6, 8, 10]
    assert manifest["sliding_window"]["mirror_axes"] == [0, 1, 2]
    assert manifest["training"] == {
        "run": "20261120-09-3fa2",
        "experiment": "liver",
        "step": 1200,
        "weights": "ema",
        "seed": 5,
        "data": "msd",
        "fold": 1,
        "metrics": {"val/dice": 0.875},
        "data_hash": "1f2e",
        "split_hash": "9abc",
    }
    (file,) = manifest["files"]
    assert file["parity"]["passed"] is True
    assert {entry["kind"] for entry in file["parity"]["inputs"]} == {"random"}


def test_every_file_carries_the_manifest_inside(make_run: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = _manifest(make_run(), out, ("torchscript", "onnx", "torch_export"))
    del manifest["files"], manifest["scripts"]

    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["medtrain.json"]) == manifest
    for name in ("model.torchscript.pt", "model.pt2"):
        with zipfile.ZipFile(out / name) as archive:
            (member,) = (entry for entry in archive.namelist() if entry.endswith("medtrain.json"))
            assert json.loads(archive.read(member)) == manifest


def test_a_flat_network_has_no_depth_axis(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run(spatial_dims=2)
    run.config["inference"]["mirror"] = False
    run.config["inference"]["keep_largest"] = ("liver",)
    manifest = _manifest(run, tmp_path / "out")
    assert manifest["postprocessing"]["keep_largest_component_of"] == [{"name": "liver", "classes": [1], "becomes": 0}]
    assert manifest["input"]["axes"] == ["B", "C", "H", "W"]
    assert manifest["sliding_window"]["mirror_axes"] == []
    assert any("slice by slice along D" in line for line in manifest["recipe"])


def test_only_the_chosen_axes_are_mirrored(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run()
    run.config["inference"]["mirror_axes"] = [0, 2]
    assert _manifest(run, tmp_path / "out")["sliding_window"]["mirror_axes"] == [0, 2]


_STRANGER = """
import itertools, json, math, sys
import numpy as np
import onnxruntime

folder, scan, out = sys.argv[1:]
manifest = json.load(open(folder + "/manifest.json", encoding="utf-8"))
image = np.load(scan).astype(np.float32)

for channel, values in zip(manifest["input"]["channels"], image):
    rule = channel["normalization"]
    if rule["scheme"] == "ct":
        values[:] = (np.clip(values, rule["lower"], rule["upper"]) - rule["mean"]) / rule["std"]
    elif rule["scheme"] == "zscore":
        inside = values != 0
        values[inside] = (values[inside] - values[inside].mean()) / values[inside].std()

window = manifest["sliding_window"]
patch, overlap, scale = window["patch_size"], window["overlap"], window["gaussian_sigma_scale"]
starts = []
for size, p in zip(image.shape[1:], patch):
    count = math.ceil((size - p) / (p * (1 - overlap))) + 1
    starts.append([0] if count == 1 else [round(i * (size - p) / (count - 1)) for i in range(count)])
weight = np.ones(patch)
for axis, p in enumerate(patch):
    profile = np.maximum(np.exp(-0.5 * (np.linspace(-1, 1, p) / (2 * scale)) ** 2), window["weight_floor"])
    weight *= profile.reshape([-1 if other == axis else 1 for other in range(len(patch))])

(entry,) = [file for file in manifest["files"] if file["format"] == "onnx"]
session = onnxruntime.InferenceSession(folder + "/" + entry["file"], providers=["CPUExecutionProvider"])
logits = np.zeros((len(manifest["labels"]), *image.shape[1:]))
total = np.zeros(image.shape[1:])
flips = [f for n in range(4) for f in itertools.combinations([a + 2 for a in window["mirror_axes"]], n)]
for corner in itertools.product(*starts):
    where = tuple(slice(s, s + p) for s, p in zip(corner, patch))
    part = image[(slice(None), *where)][None]
    mean = 0
    for axes in flips:
        flipped = np.ascontiguousarray(np.flip(part, axes))
        answer = session.run([manifest["output"]["name"]], {manifest["input"]["name"]: flipped})[0]
        mean = mean + np.flip(answer, axes) / len(flips)
    logits[(slice(None), *where)] += mean[0] * weight
    total[where] += weight
values = np.array([label["value"] for label in manifest["labels"]], dtype=np.uint8)
assert "torch" not in sys.modules and "medtrain" not in sys.modules
np.savez(out, logits=logits / total, labels=values[logits.argmax(0)])
"""


def test_a_stranger_with_numpy_and_onnxruntime_gets_the_same(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run, out = make_run(), tmp_path / "out"
    export_model(run, ["onnx"], out)
    rng = np.random.default_rng(3)
    scan = rng.normal(60, 100, size=(2, 9, 8, 17)).astype(np.float32)  # (C, D, H, W)
    scan[1, :3] = 0
    np.save(tmp_path / "scan.npy", scan)

    subprocess.run(
        [sys.executable, "-I", "-c", _STRANGER, str(out), str(tmp_path / "scan.npy"), str(tmp_path / "answer.npz")],
        check=True,
        timeout=120,
    )

    ct = (np.clip(scan[0], -100, 240) - 80.5) / 39.25
    inside = scan[1][scan[1] != 0]
    pet = np.where(scan[1] != 0, (scan[1] - inside.mean()) / inside.std(), 0)
    image = torch.from_numpy(np.stack([ct, pet]).astype(np.float32))
    expected = predict_logits(
        run.model, image, patch_size=run.plan.patch_size, overlap=0.5, sigma_scale=0.125, mirror_axes=(0, 1, 2)
    )
    answer = np.load(tmp_path / "answer.npz")
    np.testing.assert_allclose(answer["logits"], expected.numpy(), rtol=1e-3, atol=1e-4)
    values = np.array([0, 2, 7], dtype=np.uint8)
    assert (answer["labels"] == values[expected.argmax(0).numpy()]).mean() > 0.999
