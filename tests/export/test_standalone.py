"""predict.py, as it lies in an export, gives what medtrain's own predictor gives."""

from __future__ import annotations

import ast
import dataclasses
import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from medtrain.data.cascade import PreviousStage
from medtrain.data.plan import ChannelNormalization
from medtrain.engine.precision import Precision
from medtrain.export import standalone
from medtrain.export.exporter import export_model
from medtrain.export.manifest import SCRIPT_PACKAGES
from medtrain.inference.cascade import FirstStage
from medtrain.inference.predictor import Predictor
from medtrain.inference.sliding_window import SlidingWindow
from medtrain.inference.windows import gaussian_profile, window_starts
from medtrain.losses.dice import DiceLoss
from medtrain.tasks.segmentation import Segmentation

CPU = torch.device("cpu")
AFFINE = np.array([[0, -0.8, 0, 40], [0, 0, 1.1, 20], [-4.0, 0, 0, -30], [0, 0, 0, 1]], dtype=float)
"""File axes point to inferior (4 mm), left (0.8 mm), anterior (1.1 mm)."""


def _scan(folder: Path, *, joined: bool = False, whole: bool = False) -> list[Path]:
    """A smooth body with air around it: CT in whole numbers, PET in fractions unless `whole`; in file order."""
    rng = np.random.default_rng(4)
    shape = (9, 24, 20)
    ct = 400 * ndimage.gaussian_filter(rng.normal(size=shape), (0.7, 2, 2)) * 8
    pet = 5 + 20 * ndimage.gaussian_filter(rng.normal(size=shape), (0.7, 2, 2))
    grid = np.indices(shape) - np.array([4, 12, 10]).reshape(3, 1, 1, 1)
    body = (grid**2 / np.array([20, 110, 70]).reshape(3, 1, 1, 1)).sum(0) < 1
    hole = (grid**2).sum(0) < 5
    ct, pet = np.where(body, np.rint(ct), 0).astype(np.int16), np.where(body & ~hole, pet, 0).astype(np.float32)
    ct[hole] = 0
    if whole:
        pet = np.rint(pet).astype(np.int16)
    if joined:
        nib.save(nib.Nifti1Image(np.stack([ct.astype(np.float32), pet], axis=-1), AFFINE), folder / "scan.nii.gz")
        return [folder / "scan.nii.gz"]
    nib.save(nib.Nifti1Image(ct, AFFINE), folder / "scan_0000.nii.gz")
    nib.save(nib.Nifti1Image(pet, AFFINE), folder / "scan_0001.nii.gz")
    return [folder / "scan_0000.nii.gz", folder / "scan_0001.nii.gz"]


def _expected(run: Any, scans: list[Path], folder: Path) -> np.ndarray:
    """What medtrain writes for the scan, in file order."""
    settings = {key: value for key, value in run.config["inference"].items() if key != "name"}
    settings |= {key: tuple(settings[key]) for key in ("mirror_axes", "keep_largest") if settings[key] is not None}
    loss = DiceLoss(num_classes=3, regions=run.plan.regions)
    task = Segmentation(loss=loss, inference=SlidingWindow(**settings), plan=run.plan, device=CPU)
    loaded = SimpleNamespace(**{**vars(run), "task": task, "precision": Precision("fp32", CPU)})
    (report,) = Predictor(loaded).predict_folder(scans[0], folder)  # type: ignore[arg-type]
    assert report.status == "done"
    return np.asanyarray(nib.load(folder / "scan.nii.gz").dataobj)


def _predict(out: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run the script with nothing but its own folder at hand."""
    command = [sys.executable, "-I", str(out / "predict.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("spatial_dims", "joined"), [(3, False), (3, True), (2, False)])
def test_the_script_segments_as_the_predictor_does(
    make_run: Callable[..., Any], tmp_path: Path, spatial_dims: Literal[2, 3], joined: bool
) -> None:
    run, out = make_run(spatial_dims=spatial_dims), tmp_path / "out"
    run.config["inference"] |= {"mirror_axes": (1,) if spatial_dims == 2 else (0, 2), "keep_largest": ("cancer",)}
    run.model.head.bias.data[2] += 0.2 if spatial_dims == 2 else 0.0  # untrained, it would name no cancer
    (tmp_path / "scans").mkdir()
    scans = _scan(tmp_path / "scans", joined=joined)
    export_model(run, ["onnx"], out)
    expected = _expected(run, scans, tmp_path / "medtrain")

    result = _predict(out, *scans, tmp_path / "answer.nii.gz")

    assert result.returncode == 0, result.stderr
    answer = nib.load(tmp_path / "answer.nii.gz")
    np.testing.assert_array_equal(answer.affine, nib.load(scans[0]).affine)
    voxels = np.asanyarray(answer.dataobj)
    assert voxels.dtype == np.uint8
    assert voxels.shape == (9, 24, 20)
    assert set(np.unique(voxels)) == {0, 2, 7}
    assert (voxels == expected).mean() >= 0.999
    # a scan of which every class takes its share, or the comparison would mean little
    assert min(np.mean(expected == value) for value in (0, 2, 7)) > 0.005
    millilitres = np.count_nonzero(voxels == 7) * 0.8 * 1.1 * 4.0 / 1000
    assert f"cancer {millilitres:.2f} mL" in result.stdout


def test_regions_are_painted_as_the_predictor_does(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run, out = make_run(), tmp_path / "out"
    names = ("whole", "cancer", "rest")  # the network has three outputs
    run.plan = dataclasses.replace(run.plan, regions=((1, 2), (2,), (1,)), region_names=names)
    run.config["inference"] |= {"mirror": False}
    (tmp_path / "scans").mkdir()
    scans = _scan(tmp_path / "scans")
    export_model(run, ["onnx"], out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["regions"][0] == {"output": 0, "name": "whole", "classes": [1, 2], "painted_with": 1}
    assert "a region holds the voxels where its logit is above 0" in manifest["output"]["meaning"]
    assert any("painted_with (regions)" in line for line in manifest["recipe"])
    expected = _expected(run, scans, tmp_path / "medtrain")

    assert _predict(out, *scans, tmp_path / "answer.nii.gz").returncode == 0

    voxels = np.asanyarray(nib.load(tmp_path / "answer.nii.gz").dataobj)
    assert (voxels == expected).mean() >= 0.999
    assert min(np.mean(expected == value) for value in (0, 2, 7)) > 0.005


@pytest.mark.parametrize("members", [1, 2])
def test_both_stages_of_a_cascade_are_run(
    make_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: int
) -> None:
    """The first stage is coarser, and its label map becomes two channels of the second."""
    first = [make_run() for _ in range(members)]
    for seed, run in enumerate(first):
        run.plan = dataclasses.replace(run.plan, spacing=(5.0, 1.9, 1.7))
        run.config["inference"] |= {"mirror": seed == 0, "keep_largest": ("liver",)}
        torch.manual_seed(seed)
        run.model.head.weight.data += 0.5 * torch.randn_like(run.model.head.weight)
    settings = {key: value for key, value in first[0].config["inference"].items() if key != "name"}
    second, out = make_run(), tmp_path / "out"
    cascade = PreviousStage(tuple("ab"[:members]), tuple("ab"[:members]), second.plan.class_names, ((1, 2), (2,)))
    second.plan = dataclasses.replace(second.plan, cascade=cascade)
    second.config["inference"] |= {"mirror": False}
    second.model.first = torch.nn.Conv3d(4, 4, 3, padding=1)
    second.model.first.weight.data[:, 2:] *= 3  # what the first stage finds counts
    (tmp_path / "scans").mkdir()
    scans = _scan(tmp_path / "scans")
    files = export_model(second, ["onnx"], out, first_stage=first)
    assert len(files) == 1 + members

    stage = FirstStage.__new__(FirstStage)
    task = Segmentation(
        loss=DiceLoss(num_classes=3), inference=SlidingWindow(**settings), plan=first[0].plan, device=CPU
    )
    runs = [SimpleNamespace(**{**vars(run), "task": task, "precision": Precision("fp32", CPU)}) for run in first]
    vars(stage).update(_stage=cascade, _runs=runs, _last=None, _open=lambda members: None)
    monkeypatch.setattr(FirstStage, "behind", classmethod(lambda cls, run: stage))
    expected = _expected(second, scans, tmp_path / "medtrain")
    monkeypatch.setattr(stage, "_predict", lambda files, geometry, chosen: np.zeros(geometry.resampled_shape, np.uint8))
    vars(stage).update(_last=None)
    without = _expected(second, scans, tmp_path / "without")
    assert (without != expected).mean() > 0.02

    result = _predict(out, *scans, tmp_path / "answer.nii.gz")

    assert result.returncode == 0, result.stderr
    voxels = np.asanyarray(nib.load(tmp_path / "answer.nii.gz").dataobj)
    assert (voxels == expected).mean() >= 0.999


def test_every_normalisation_is_followed(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run, out = make_run(), tmp_path / "out"
    # the statistics of the first channel are those of the body too, because the second looks at it
    rules = (ChannelNormalization("zscore"), ChannelNormalization("zscore", nonzero=True))
    run.plan = dataclasses.replace(run.plan, normalization=rules, spacing=(4.0, 1.1, 0.8), patch_size=(12, 8, 10))
    run.config["inference"] |= {"mirror": False, "overlap": 0.25, "sigma_scale": 0.25}
    (tmp_path / "scans").mkdir()
    scans = _scan(tmp_path / "scans")
    export_model(run, ["onnx"], out)
    assert json.loads((out / "manifest.json").read_text())["input"]["channels"][0]["normalization"] == {
        "scheme": "zscore",
        "formula": "(x - mean) / std",
        "mean_and_std_of": "the body (see geometry.body) of the cropped scan before resampling",
        "statistics_region": "body",
    }
    expected = _expected(run, scans, tmp_path / "medtrain")
    assert _predict(out, *scans, tmp_path / "answer.nii.gz").returncode == 0
    assert (np.asanyarray(nib.load(tmp_path / "answer.nii.gz").dataobj) == expected).mean() >= 0.999


def test_whole_numbers_are_rounded_as_in_training(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run, out = make_run(), tmp_path / "out"
    run.config["inference"] |= {"mirror": False}
    (tmp_path / "scans").mkdir()
    scans = _scan(tmp_path / "scans", whole=True)
    export_model(run, ["onnx"], out)
    expected = _expected(run, scans, tmp_path / "medtrain")
    assert _predict(out, *scans, tmp_path / "answer.nii.gz").returncode == 0
    assert (np.asanyarray(nib.load(tmp_path / "answer.nii.gz").dataobj) == expected).mean() >= 0.999


def test_wrong_calls_are_explained_and_write_nothing(make_run: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(make_run(), ["onnx"], out)
    scans = _scan(tmp_path)
    before = scans[1].read_bytes()

    forgotten = _predict(out, *scans)  # OUT was left away: the second channel must survive
    assert forgotten.returncode == 1
    assert "exists already" in forgotten.stderr
    assert scans[1].read_bytes() == before
    single = _predict(out, scans[0], tmp_path / "answer.nii.gz")
    assert single.returncode == 1
    assert "1 channel(s) given, the network needs 2: CT, PET" in single.stderr
    assert "in this order: CT, PET" in " ".join(_predict(out, Path("--help")).stdout.split())
    with (out / "model.onnx").open("ab") as file:
        file.write(b"x")
    damaged = _predict(out, *scans, tmp_path / "answer.nii.gz")
    assert damaged.returncode == 1
    assert "checksum" in damaged.stderr
    assert not (tmp_path / "answer.nii.gz").exists()


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scans that nothing can be made of, each in its own way, and one that is fine."""
    folder = tmp_path_factory.mktemp("scans")
    unit = np.eye(4)
    rng = np.random.default_rng(0)
    good = rng.integers(-500, 500, (12, 14, 8, 2)).astype(np.int16)
    files = {
        "good": good,
        "one": good[..., 0],
        "five": np.ones((8, 9, 4, 5), np.int16),
        "flat": np.ones((8, 9), np.int16),
        "nan": np.where(good > 490, np.nan, good).astype(np.float32),
        "complex": good.astype(np.complex64),
        "many_axes": np.ones((4, 4, 4, 2, 2), np.int16),
    }
    for name, array in files.items():
        nib.save(nib.Nifti1Image(array, unit), folder / f"{name}.nii.gz")
    packed = (folder / "good.nii.gz").read_bytes()
    plain = bytearray(gzip.decompress(packed))
    (folder / "truncated.nii.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "truncated.nii").write_bytes(plain[: len(plain) // 2])
    (folder / "checksum.nii.gz").write_bytes(packed[:-8] + bytes(4) + packed[-4:])
    (folder / "text.nii.gz").write_text("no scan at all " * 50)
    (folder / "empty.nii.gz").touch()
    plain[280:296] = bytes(16)  # the first row of the affine
    (folder / "affine.nii").write_bytes(plain)
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a network of two channels; whatever is wrong with a call is told before the network runs."""
    folder = tmp_path_factory.mktemp("export")
    channels = [{"name": "CT"}, {"name": "PET"}]
    manifest: dict[str, Any] = {"input": {"channels": channels}, "labels": [{"name": "background"}, {"name": "liver"}]}
    manifest["first_stage"] = None
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _refused(export: Path, monkeypatch: pytest.MonkeyPatch, *arguments: Path) -> str:
    """What the script says instead of calling the network: on stderr by itself, or as the reason to exit."""
    monkeypatch.setattr(standalone, "HERE", export)
    monkeypatch.setattr(standalone, "load_network", lambda manifest: None)
    with pytest.raises(SystemExit) as caught:
        standalone.main([str(path) for path in arguments])
    assert caught.value.code not in (0, None)
    return str(caught.value.code)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["truncated.nii.gz"], "truncated or damaged"),
        (["truncated.nii"], "truncated or damaged"),
        (["checksum.nii.gz"], "truncated or damaged"),
        (["text.nii.gz"], "not a NIfTI file"),
        (["empty.nii.gz"], "not a NIfTI file"),
        (["nowhere.nii.gz"], "no such file"),
        (["."], "a folder, not a scan"),
        (["nan.nii.gz"], "NaN or infinite"),
        (["complex.nii.gz"], "not plain numbers"),
        (["many_axes.nii.gz"], "its shape is 4 x 4 x 4 x 2 x 2"),
        (["affine.nii"], "its affine is not usable"),
        (["five.nii.gz"], "5 channel(s) given, the network needs 2: CT, PET"),
        (["flat.nii.gz"], "1 channel(s) given, the network needs 2: CT, PET"),
        (["one.nii.gz", "flat.nii.gz"], "is not on the voxel grid of"),
    ],
)
def test_a_bad_scan_is_told_in_one_sentence(
    export: Path,
    scans: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    names: list[str],
    said: str,
) -> None:
    files = [scans / name for name in names]
    code = _refused(export, monkeypatch, *files, scans / "new.nii.gz")
    message = capsys.readouterr().err + (code if code != "1" else "")
    assert said in message
    assert message.startswith("error: ")
    assert message.strip().count("\n") == 0
    assert not list(scans.glob("*new.nii.gz*"))


def test_all_bad_channels_are_told_at_once(
    export: Path, scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [scans / "text.nii.gz", scans / "one.nii.gz", scans / "empty.nii.gz"]
    assert _refused(export, monkeypatch, *files, scans / "new.nii.gz") == "1"
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": not a NIfTI")[0] for line in lines] == [f"error: {files[0]}", f"error: {files[2]}"]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("nowhere/new.nii.gz", "there is no folder"),
        ("good.nii.gz/new.nii.gz", "there is no folder"),
        ("good.nii.gz", "exists already"),
        ("new.nrrd", "must end in .nii.gz or .nii"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_first(
    export: Path, scans: Path, monkeypatch: pytest.MonkeyPatch, out: str, said: str
) -> None:
    monkeypatch.setattr(standalone, "read_scan", None)  # not even the scan is read
    assert said in _refused(export, monkeypatch, scans / "good.nii.gz", scans / out)


def test_a_folder_that_takes_no_files_is_told_first(export: Path, scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(standalone, "read_scan", None)
    monkeypatch.setattr(Path, "touch", refuse)
    code = _refused(export, monkeypatch, scans / "good.nii.gz", scans / "new.nii.gz")
    assert code == f"error: {scans / 'new.nii.gz'} cannot be written: Permission denied"


def test_an_incomplete_export_is_told(tmp_path: Path) -> None:
    shutil.copy(standalone.__file__, tmp_path / "predict.py")
    result = _predict(tmp_path, tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "manifest.json" in result.stderr


def test_the_script_is_copied_verbatim_beside_onnx_only(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run, out = make_run(), tmp_path / "out"
    export_model(run, ["torchscript", "onnx"], out)
    content = Path(standalone.__file__).read_bytes()
    assert (out / "predict.py").read_bytes() == content
    (entry,) = json.loads((out / "manifest.json").read_text())["scripts"]
    assert (entry["file"], entry["bytes"]) == ("predict.py", len(content))
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()

    export_model(run, ["torchscript"], out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "model.torchscript.pt"]
    assert json.loads((out / "manifest.json").read_text())["scripts"] == []


def test_the_script_imports_nothing_else() -> None:
    names = set()
    for node in ast.walk(ast.parse(Path(standalone.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    assert names - set(sys.stdlib_module_names) == set(SCRIPT_PACKAGES)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.95])
@pytest.mark.parametrize(("size", "patch"), [(8, 8), (9, 8), (37, 8), (41, 16), (5, 1)])
def test_windows_and_weights_are_medtrains(size: int, patch: int, overlap: float) -> None:
    assert standalone.window_starts(size, patch, overlap) == window_starts(size, patch, overlap)
    weight = standalone.window_weight([patch], 0.125, 1e-4)
    np.testing.assert_allclose(weight, gaussian_profile(patch, 0.125).numpy(), rtol=1e-6)
