"""Networks of labelled images: exported with named inputs, described, and used without medtrain."""

from __future__ import annotations

import ast
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from medtrain.data.transforms.images.resize import fit_image
from medtrain.data.transforms.images.resize import stretch as torch_stretch
from medtrain.errors import UsageError
from medtrain.export import standalone_images
from medtrain.export.exporter import export_model
from medtrain.inference.image_predictor import ImagePredictor
from tests.inference.image_runs import TABLE, TargetPlan, picture, plan, read_table, run, write_table

ALL = ("torchscript", "onnx", "torch_export")
TOLERANCE = 1e-5
"""What the stand-alone script promises for probabilities, of networks of this size."""


def _call(name: str, path: Path, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Run an exported file as its user would."""
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return [torch.from_numpy(found) for found in session.run(None, {k: v.numpy() for k, v in inputs.items()})]
    if name == "torch_export":
        with torch.no_grad():
            found = torch.export.load(str(path)).module()(*inputs.values())
    else:
        with pytest.warns(FutureWarning, match="deprecated"), torch.no_grad():
            found = torch.jit.load(str(path))(*inputs.values())
    return [found] if isinstance(found, torch.Tensor) else list(found)


def test_bags_of_any_length_in_batches_of_any_size(tmp_path: Path) -> None:
    its_run = run(plan(max_instances=3), tmp_path)
    files = export_model(its_run, ALL, tmp_path / "out")
    for file in files:
        assert file.passed
        for batch, instances in ((1, 1), (3, 7)):
            inputs = {
                "image": torch.randn(batch, instances, 1, 8, 8),
                "present": torch.ones(batch, instances, dtype=torch.bool),
            }
            inputs["present"][-1, instances // 2 + 1 :] = False
            with torch.no_grad():
                expected = its_run.model(**inputs)
            logits, attention = _call(file.format, file.path, inputs)
            torch.testing.assert_close(logits, expected["logits"], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(attention, expected["attention"], rtol=1e-4, atol=1e-6)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [entry["shape"] for entry in manifest["inputs"]] == [
        ["batch", "instances", 1, 8, 8],
        ["batch", "instances"],
    ]
    assert [entry["name"] for entry in manifest["outputs"]] == ["logits", "attention"]
    assert [item.batch_size for item in files[0].parity] == [1, 2]


def test_adapters_are_merged(tmp_path: Path) -> None:
    class Adapted(nn.Module):
        """Its weights are those of a plain network and a change to them."""

        inputs = ("image",)

        def __init__(self, plain: nn.Module) -> None:
            super().__init__()
            self.plain = plain
            self.change = nn.Parameter(torch.ones(()))

        def forward(self, image: torch.Tensor) -> Any:
            return self.plain(image) + self.change * image.mean(dim=(1, 2, 3))[:, None]

        def merged(self) -> nn.Module:
            network = type(self.plain)(plan(), 3)
            network.weight.data += float(self.change.detach()) / 64
            return network

    its_run = run(plan(), tmp_path)
    its_run.model = Adapted(its_run.model)
    (file,) = export_model(its_run, ["torch_export"], tmp_path / "out")
    assert set(torch.export.load(str(file.path)).state_dict) == {"exported.weight"}
    image = torch.randn(2, 1, 8, 8)
    (logits,) = _call(file.format, file.path, {"image": image})
    torch.testing.assert_close(logits, its_run.model(image), rtol=1e-4, atol=1e-5)


def test_the_manifest_tells_how_logits_become_a_class(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "inference": {"threshold": "youden", "calibrate": True},
        "decision": {"threshold/yes": 0.25, "temperature": 1.5},
    }
    export_model(
        run(plan(TargetPlan("ill", ("no", "yes"), (4, 4))), tmp_path, **options), ["torch_export"], tmp_path / "x"
    )
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    (part,) = manifest["prediction"]
    assert (part["activation"]["kind"], part["classes"]) == ("softmax", ["no", "yes"])
    assert (part["threshold"], part["temperature"]) == (0.25, 1.5)
    assert manifest["targets"] == [{"name": "ill", "classes": ["no", "yes"]}]
    rules = manifest["preprocessing"]
    assert (rules["image_size"], rules["mean"], rules["std"], rules["resize"]) == ([8, 8], [0.4], [0.2], "letterbox")
    assert (manifest["family"], manifest["tabular"], manifest["scripts"]) == ("images", None, [])


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("fp32", "the run predicts in float32, too"),
        ("bf16", "the run predicts in bf16 and the files in float32: probabilities may differ by 0.01"),
        ("fp16", "the run predicts in fp16 and the files in float32: probabilities may differ by 0.001"),
    ],
)
def test_the_manifest_tells_the_precision_of_the_run(tmp_path: Path, precision: str, said: str) -> None:
    export_model(run(plan(), tmp_path, precision=precision), ["torch_export"], tmp_path / "x")
    told = json.loads((tmp_path / "x" / "manifest.json").read_text())["precision"]
    assert told == {"run": precision, "files": "fp32", "is": said}


def test_a_decision_that_was_never_taken_is_an_error(tmp_path: Path) -> None:
    binary = plan(TargetPlan("ill", ("no", "yes"), (4, 4)))
    with pytest.raises(UsageError, match="was chosen for these weights") as caught:
        export_model(run(binary, tmp_path, inference={"calibrate": True}), ["onnx"], tmp_path / "x")
    assert "medtrain evaluate" in str(caught.value.hint)
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------------------------------------- the ready script


def _alone(export: Path, source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(export / "predict.py"), str(source), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _same(alone: Path, ours: Path) -> None:
    found, expected = read_table(alone), read_table(ours)
    assert set(found) == set(expected)
    for case_id, row in expected.items():
        for key, text in row.items():
            if key.startswith(("prob/", "grade/", "survival/")) or (key in ("score", "risk") and text[:1].isdigit()):
                assert float(found[case_id][key]) == pytest.approx(float(text), abs=TOLERANCE), (case_id, key)
            elif key.startswith("predicted") or key == "risk":
                assert found[case_id][key] == text, (case_id, key)


def test_the_script_gives_what_medtrain_gives(tmp_path: Path) -> None:
    images = tmp_path / "in"
    picture(images / "small.png", 1, (5, 7))
    picture(images / "large.png", 2, (80, 61))
    picture(images / "photo.jpg", 3, (150, 210, 3))
    picture(images / "deep.png", 4, (30, 20), dtype=np.uint16)
    its_run = run(plan(), tmp_path, inference={"mirror": True})
    ImagePredictor(its_run).predict(images, tmp_path / "ours.csv")
    export_model(its_run, ["onnx"], tmp_path / "x")

    result = _alone(tmp_path / "x", images, tmp_path / "alone.csv")

    assert result.returncode == 0, result.stderr
    _same(tmp_path / "alone.csv", tmp_path / "ours.csv")
    (images / "bad.png").write_bytes(b"no image")
    result = _alone(tmp_path / "x", images, tmp_path / "alone.csv")
    assert result.returncode == 1
    assert "bad.png is no PNG, JPEG or NIfTI file" in result.stderr
    assert read_table(tmp_path / "alone.csv")["bad"]["status"] == "failed"


def test_the_script_reads_tables_and_colours(tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / f"{index}.png", index, (21, 17, 3))
    rows = [
        {"image": "0.png", "age": "61.5", "sex": "m"},
        {"image": "1.png", "age": "NA", "sex": "other"},
        {"image": "2.png", "age": "20", "sex": ""},
    ]
    table = write_table(tmp_path / "new.csv", rows)
    data = {
        "name": "csv",
        "path": "t.csv",
        "images": ["image"],
        "targets": "f",
        "numeric": ["age"],
        "categorical": ["sex"],
    }
    colours: dict[str, Any] = {"in_channels": 3, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    zones = [TargetPlan(name, ("0", "1", "unknown"), (1, 1, 1)) for name in ("left", "right")]
    its_run = run(
        plan(*zones, tabular=TABLE, paired_targets=((0, 1),), **colours),
        tmp_path,
        task="zones",
        data=data,
        inference={"mirror": True},
    )
    ImagePredictor(its_run).predict(table, tmp_path / "ours.csv")
    export_model(its_run, ["onnx"], tmp_path / "x")
    result = _alone(tmp_path / "x", table, tmp_path / "alone.csv")
    assert result.returncode == 0, result.stderr
    _same(tmp_path / "alone.csv", tmp_path / "ours.csv")


def _exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, its_plan: Any, **options: Any) -> Path:
    """An exported network whose script runs in this process."""
    export_model(run(its_plan, tmp_path, **options), ["onnx"], tmp_path / "x")
    monkeypatch.setattr(standalone_images, "HERE", tmp_path / "x")
    return tmp_path / "x"


@pytest.mark.parametrize(
    ("views", "rows"),
    [
        ((), [{"id": "b", "image": "0.png"}, {"id": "a", "image": "0.png"}, {"id": "a", "image": "1.png"}]),
        (("front", "side"), [{"id": name, "front": "0.png", "side": "1.png"} for name in "baa"]),
    ],
)
def test_two_rows_of_one_id_are_told_before_anything_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: tuple[str, ...], rows: list[dict[str, str]]
) -> None:
    for index in range(2):
        picture(tmp_path / f"{index}.png", index)
    _exported(tmp_path, monkeypatch, plan(view_names=views))
    table = write_table(tmp_path / "new.csv", rows)
    with pytest.raises(SystemExit) as caught:
        standalone_images.main([str(table), str(tmp_path / "alone.csv")])
    assert caught.value.code == f"error: {table}: lines 3 and 4 have the same id, a"
    assert not (tmp_path / "alone.csv").exists()


def _refused(*arguments: Path) -> str:
    with pytest.raises(SystemExit) as caught:
        standalone_images.main([str(path) for path in arguments])
    return str(caught.value.code)


def test_an_output_that_cannot_be_written_is_told_before_anything_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "in" / "a.png", 1)
    _exported(tmp_path, monkeypatch, plan())
    monkeypatch.setattr(standalone_images, "predict", None)
    (tmp_path / "folder.csv").mkdir()
    assert "be neither IN nor a folder" in _refused(tmp_path / "in", tmp_path / "folder.csv")
    with pytest.raises(FileNotFoundError, match="nowhere"):  # one line where it is run as a script
        standalone_images.main([str(tmp_path / "in"), str(tmp_path / "nowhere" / "out.csv")])
    assert "neither an image nor a folder of images" in _refused(tmp_path / "nowhere", tmp_path / "out.csv")
    assert sorted(path.name for path in tmp_path.glob("*.csv*")) == ["folder.csv"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("image\na.png\n".encode("utf-16"), "is no readable table of UTF-8 text with commas"),
        (b"\x1f\x8b\x08\x00\xff\xfe", "is no readable table of UTF-8 text with commas"),
        (b"picture;age\na.png;3\n", "lacks the columns image; it has picture;age"),
        (b"", "has no rows"),
        (b"image\n", "has no rows"),
    ],
)
def test_a_table_that_is_none_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    _exported(tmp_path, monkeypatch, plan())
    (tmp_path / "in.csv").write_bytes(content)
    message = _refused(tmp_path / "in.csv", tmp_path / "out.csv")
    assert message.startswith(f"error: {tmp_path / 'in.csv'} {said}")
    assert not list(tmp_path.glob("*out.csv*"))


def test_every_bad_image_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    picture(folder / "good.png", 1)
    whole = (folder / "good.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    values = np.random.default_rng(0).random((30, 30, 1), dtype=np.float32)
    for name, array in (
        ("flat", values),
        ("complex", values.astype(np.complex64)),
        ("nan", np.where(values > 0.9, np.nan, values)),
        ("volume", np.ones((6, 6, 6), np.float32)),
    ):
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{name}.nii.gz")
    packed = (folder / "flat.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "checksum.nii.gz").write_bytes(packed[:-8] + bytes(4) + packed[-4:])
    (folder / "text.nii.gz").write_text("no image")
    _exported(tmp_path, monkeypatch, plan())
    assert _refused(folder, tmp_path / "out.csv") == "1"
    rows = read_table(tmp_path / "out.csv")
    assert {name for name, row in rows.items() if row["status"] == "done"} == {"good", "flat"}
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(rows) - 2 == 7
    for name, said in (
        ("half", "is truncated"),
        ("cut", "truncated or damaged"),
        ("checksum", "truncated or damaged"),
        ("text", "no NIfTI file"),
        ("complex", "not plain numbers"),
        ("nan", "holds NaN"),
        ("volume", "has the shape (1, 6, 6, 6)"),
    ):
        assert said in rows[name]["message"]


def test_a_sample_that_onnxruntime_refuses_does_not_cost_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        picture(tmp_path / "in" / f"{index}.png", index)
    _exported(tmp_path, monkeypatch, plan())
    load, times = standalone_images.load_network, []

    def loaded(manifest: dict[str, Any]) -> Any:
        network = load(manifest)

        def call(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            times.append(1)
            # a shape that onnxruntime itself refuses
            return network({"image": inputs["image"][..., :5]} if len(times) == 2 else inputs)

        return call

    monkeypatch.setattr(standalone_images, "load_network", loaded)
    with pytest.raises(SystemExit) as caught:
        standalone_images.main([str(tmp_path / "in"), str(tmp_path / "alone.csv")])
    assert caught.value.code == 1
    rows = read_table(tmp_path / "alone.csv")
    assert [row["status"] for row in rows.values()] == ["done", "failed", "done"]
    assert rows["1"]["message"].startswith("InvalidArgument: ")
    assert "\n" not in rows["1"]["message"]
    assert "error: 1: InvalidArgument" in capsys.readouterr().err


@pytest.mark.parametrize(("task", "loss"), [("ordinal", "ordinal"), ("multilabel", "bce"), ("classification", "ce")])
def test_the_script_knows_every_kind_of_outcome(tmp_path: Path, task: str, loss: str) -> None:
    images = tmp_path / "in"
    for index in range(3):
        picture(images / f"{index}.png", index, (16, 16))
    targets = [TargetPlan("grade", ("0", "1", "2", "3"), (3, 3, 3, 3))]
    if task == "multilabel":
        targets = [TargetPlan(name, ("no", "yes"), (3, 3)) for name in ("cyst", "stone")]
    its_run = run(
        plan(*targets), tmp_path, task=task, loss=loss, inference={"calibrate": True}, decision={"temperature": 0.7}
    )
    ImagePredictor(its_run).predict(images, tmp_path / "ours.csv")
    export_model(its_run, ["onnx"], tmp_path / "x")
    result = _alone(tmp_path / "x", images, tmp_path / "alone.csv")
    assert result.returncode == 0, result.stderr
    _same(tmp_path / "alone.csv", tmp_path / "ours.csv")


@pytest.mark.parametrize(("task", "loss"), [("multilabel", "bce"), ("regression", "mse"), ("multitask", "multitask")])
def test_the_script_swaps_paired_targets_back(tmp_path: Path, task: str, loss: str) -> None:
    images = tmp_path / "in"
    for index in range(3):
        picture(images / f"{index}.png", index, (16, 16))
    targets = [TargetPlan(f"{side}_cyst", ("no", "yes"), (3, 3)) for side in ("left", "right")]
    if task == "regression":
        targets = [
            TargetPlan(f"{side}_size", None, mean=size, std=1.0) for side, size in (("left", 5.0), ("right", 9.0))
        ]
    pairs = ((0, 1),)
    if task == "multitask":
        targets = [targets[0], TargetPlan("age", None), targets[1]]
        pairs = ((0, 2),)
    its_run = run(plan(*targets, paired_targets=pairs), tmp_path, task=task, loss=loss, inference={"mirror": True})
    ImagePredictor(its_run).predict(images, tmp_path / "ours.csv")
    export_model(its_run, ["onnx"], tmp_path / "x")
    result = _alone(tmp_path / "x", images, tmp_path / "alone.csv")
    assert result.returncode == 0, result.stderr
    compared = 0
    with (tmp_path / "alone.csv").open() as alone, (tmp_path / "ours.csv").open() as ours:
        for found, expected in zip(csv.DictReader(alone), csv.DictReader(ours), strict=True):
            numbers = [key for key in found if "prob/" in key or "predicted/" in key or key == "age/predicted"]
            for key in numbers:
                assert float(found[key]) == pytest.approx(float(expected[key]), abs=TOLERANCE), key
            compared += len(numbers)
    assert compared >= 6


def test_times_that_are_close_are_told_apart_by_the_script() -> None:
    part = {"kind": "survival", "times": [1234567.0, 1234568.0], "time_names": ["1234567", "1234568"]}
    row = standalone_images.decide(np.array([0.75, 0.5]), part)
    assert row == {"risk": 0.75, "survival/1234567": 0.75, "survival/1234568": 0.5}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("have", "want"), [((37, 50), (8, 8)), ((5, 9), (16, 12)), ((40, 12), (13, 30))])
def test_eight_bits_are_resized_bit_for_bit_as_torch_does(
    have: tuple[int, int], want: tuple[int, int], channels: int
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*have, channels), dtype=np.uint8)
    np.testing.assert_array_equal(standalone_images.stretch(image, want), torch_stretch(image, want))


@pytest.mark.parametrize("mode", ["letterbox", "crop", "stretch"])
@pytest.mark.parametrize("have", [(9, 30, 20), (4, 7, 15)])
def test_volumes_get_their_size_as_in_training(mode: Any, have: tuple[int, ...]) -> None:
    volume = np.random.default_rng(1).random((*have, 1)).astype(np.float32)
    expected, _ = fit_image(volume, None, (6, 11, 11), mode)
    np.testing.assert_allclose(standalone_images.fit(volume, (6, 11, 11), mode), expected, atol=2e-6)


def test_the_script_needs_nothing_but_what_it_says() -> None:
    tree = ast.parse(Path(standalone_images.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"cv2", "numpy", "onnxruntime", "nibabel"}


def test_the_script_reads_volumes_and_flat_nifti_files(tmp_path: Path) -> None:
    nib = pytest.importorskip("nibabel")
    images = tmp_path / "in"
    images.mkdir()
    rng = np.random.default_rng(2)
    affine = np.array([[0, -1.5, 0, 3], [2, 0, 0, -5], [0, 0, -3, 8], [0, 0, 0, 1]], dtype=float)
    for name, kind in (("ct", np.int16), ("byte", np.uint8)):
        nib.save(nib.Nifti1Image(rng.integers(0, 200, (12, 9, 7)).astype(kind), affine), images / f"{name}.nii.gz")
    volumes = plan(image_size=(6, 8, 8), spatial_dims=3, in_channels=1)
    its_run = run(volumes, tmp_path)
    ImagePredictor(its_run).predict(images, tmp_path / "ours.csv")
    export_model(its_run, ["onnx"], tmp_path / "x")
    result = _alone(tmp_path / "x", images, tmp_path / "alone.csv")
    assert result.returncode == 0, result.stderr
    _same(tmp_path / "alone.csv", tmp_path / "ours.csv")

    flat = tmp_path / "flat.nii"
    nib.save(nib.Nifti1Image(rng.integers(0, 200, (20, 14, 1)).astype(np.int16), affine), flat)
    pictures = run(plan(), tmp_path)
    ImagePredictor(pictures).predict(flat, tmp_path / "ours2.csv")
    export_model(pictures, ["onnx"], tmp_path / "y")
    result = _alone(tmp_path / "y", flat, tmp_path / "alone2.csv")
    assert result.returncode == 0, result.stderr
    _same(tmp_path / "alone2.csv", tmp_path / "ours2.csv")
