"""The export as a whole: what appears, what it computes, and that nothing appears when something is wrong."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medtrain.data.cascade import PreviousStage
from medtrain.errors import MedtrainError, MissingExtraError, UsageError
from medtrain.export import exporter
from medtrain.export.exporter import export_model
from medtrain.export.formats import FORMATS, FileFormat
from medtrain.models.stages import UNetSettings
from medtrain.models.unet import UNet

ALL = ("torchscript", "onnx", "torch_export")


def _run_file(name: str, path: Path, image: Tensor) -> Tensor:
    """Run an exported file as its user would, without medtrain's own loader."""
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    if name == "torch_export":
        with torch.no_grad():
            return torch.export.load(str(path)).module()(image)
    with pytest.warns(FutureWarning, match="deprecated"), torch.no_grad():
        return torch.jit.load(str(path))(image)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_each_format_computes_the_network_for_any_batch_size(
    make_run: Callable[..., Any], tmp_path: Path, spatial_dims: int
) -> None:
    run = make_run(spatial_dims=spatial_dims)
    before = copy.deepcopy(run.model.state_dict())

    files = export_model(run, ALL, tmp_path / "out")

    assert [file.format for file in files] == list(ALL)
    for file in files:
        assert file.path.parent == tmp_path / "out"
        assert file.path.stat().st_size == file.size_bytes
        assert hashlib.sha256(file.path.read_bytes()).hexdigest() == file.sha256
        assert file.passed
        for batch in (1, 3, 5):
            image = torch.randn(batch, 2, *run.plan.patch_size) * 2 + 1
            with torch.no_grad():
                expected = run.model(image)
            torch.testing.assert_close(_run_file(file.format, file.path, image), expected, rtol=1e-4, atol=1e-4)
    # the run's own network is untouched
    assert all(parameter.requires_grad for parameter in run.model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in run.model.state_dict().items())


def test_deep_supervision_is_off_and_the_memory_layout_does_not_matter(
    make_run: Callable[..., Any], tmp_path: Path
) -> None:
    stages = UNetSettings(channels=(4, 6, 8), strides=(1, (1, 2, 1), 2), kernel_sizes=(3, 3, 3), deep_supervision=True)
    model = UNet(spatial_dims=3, in_channels=2, num_outputs=3, settings=stages)
    model = model.to(memory_format=torch.channels_last_3d)
    run = make_run(model=model)
    model.train()  # whatever state the network is handed over in

    files = export_model(run, ["onnx"], tmp_path / "out")

    image = torch.randn(2, 2, 6, 8, 10)
    with torch.no_grad():
        expected = model.eval()(image)
    torch.testing.assert_close(_run_file("onnx", files[0].path, image), expected, rtol=1e-4, atol=1e-4)


def test_patches_of_real_scans_are_compared_too(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run()
    patch = torch.randn(2, *run.plan.patch_size)

    (file,) = export_model(run, ["torch_export"], tmp_path / "out", samples=[("liver_17", patch)])

    assert [(result.kind, result.batch_size) for result in file.parity] == [
        ("random", 1),
        ("random", 2),
        ("case liver_17", 1),
    ]


def _spoiled(entry: FileFormat, spoil: Callable[[nn.Module], None]) -> FileFormat:
    """A format whose writer exports another network than it was given."""

    def write(network: nn.Module, example: Any, path: Path, description: str, signature: Any) -> dict[str, Any]:
        other = copy.deepcopy(network)
        spoil(other)
        return entry.write(other, example, path, description, signature)

    return FileFormat(entry.name, entry.filename, write, entry.load, entry.require)


def test_a_file_that_computes_something_else_fails_and_leaves_nothing(
    make_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shift(network: nn.Module) -> None:
        network.get_submodule("head").get_parameter("bias").data += 0.01

    monkeypatch.setattr(
        exporter, "file_format", lambda name: _spoiled(FORMATS[name], shift) if name == "onnx" else FORMATS[name]
    )
    parent = tmp_path / "exports"

    with pytest.raises(MedtrainError, match=r"onnx: the exported file differs .* by 0\.01") as caught:
        export_model(make_run(), ["torch_export", "onnx"], parent / "out")
    assert "nothing was written" in caught.value.message
    assert list(parent.iterdir()) == []


def test_a_larger_tolerance_lets_it_pass(
    make_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shift(network: nn.Module) -> None:
        network.get_submodule("head").get_parameter("bias").data += 0.01

    monkeypatch.setattr(exporter, "file_format", lambda name: _spoiled(FORMATS[name], shift))

    (file,) = export_model(make_run(), ["torch_export"], tmp_path / "out", tolerance=0.1)

    assert file.worst.max_abs_error == pytest.approx(0.01, rel=1e-3)


def test_an_interrupted_export_leaves_nothing(
    make_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(network: nn.Module) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        exporter, "file_format", lambda name: _spoiled(FORMATS[name], interrupt) if name == "onnx" else FORMATS[name]
    )
    with pytest.raises(KeyboardInterrupt):
        export_model(make_run(), ["torch_export", "onnx"], tmp_path / "exports" / "out")
    assert list((tmp_path / "exports").iterdir()) == []


def test_weights_that_are_not_finite_are_refused(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run()
    run.model.head.bias.data[1] = float("nan")
    with pytest.raises(MedtrainError, match="not finite"):
        export_model(run, ["torchscript"], tmp_path / "exports" / "out")
    assert list((tmp_path / "exports").iterdir()) == []


class _ListNet(nn.Module):
    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, image]


class _BatchOfTwoNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv3d(2, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(image) * (2.0 if image.shape[0] == 2 else 1.0)


def test_a_network_that_returns_a_list_is_refused(make_run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(MedtrainError, match=r"must return one tensor of logits .* returned list"):
        export_model(make_run(model=_ListNet()), ["torchscript"], tmp_path / "out")


def test_a_network_that_depends_on_the_batch_size_is_caught(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run(model=_BatchOfTwoNet())
    with (
        pytest.warns(torch.jit.TracerWarning, match="might cause the trace to be incorrect"),
        pytest.raises(MedtrainError, match=r"torchscript: the exported file differs"),
    ):
        export_model(run, ["torchscript"], tmp_path / "exports" / "a")
    with pytest.raises(MedtrainError, match=r"cannot capture _BatchOfTwoNet with a free batch size"):
        export_model(run, ["torch_export"], tmp_path / "exports" / "b")
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(
    make_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=package) as caught:
        export_model(make_run(), ["torchscript", "onnx"], tmp_path / "out")
    assert caught.value.hint == "pip install 'medtrain[export]'"
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_suggests_the_nearest(make_run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown export format `onx`; available: torchscript, onnx") as caught:
        export_model(make_run(), ["onx"], tmp_path / "out")
    assert caught.value.hint == "did you mean `--format onnx`?"


def test_an_earlier_export_is_replaced_only_on_request(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run, out = make_run(), tmp_path / "out"
    export_model(run, ["torchscript"], out)
    with pytest.raises(UsageError, match="already holds an export"):
        export_model(run, ["torch_export"], out)
    assert (out / "model.torchscript.pt").exists()

    export_model(run, ["torch_export"], out, overwrite=True)

    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "model.pt2"]
    assert [file["file"] for file in json.loads((out / "manifest.json").read_text())["files"]] == ["model.pt2"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_never_touched(
    make_run: Callable[..., Any], tmp_path: Path, overwrite: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds files that are not an export"):
        export_model(make_run(), ["torchscript"], out, overwrite=overwrite)
    assert (out / "thesis.tex").read_text() == "years of work"
    with pytest.raises(UsageError, match="is a file"):
        export_model(make_run(), ["torchscript"], out / "thesis.tex", overwrite=overwrite)


def test_a_second_stage_takes_the_first_with_it(make_run: Callable[..., Any], tmp_path: Path) -> None:
    first, run, out = make_run(), make_run(), tmp_path / "out"
    stage = PreviousStage((".",), ("abc",), ("background", "liver", "cancer"), ((1, 2),))
    run.plan = dataclasses.replace(run.plan, cascade=stage)
    run.model.first = torch.nn.Conv3d(3, 4, 3, padding=1)
    patch = torch.zeros(2, *run.plan.patch_size)  # of the image alone
    for overwrite in (False, True):
        files = export_model(
            run, ["torchscript"], out, samples=[("a", patch)], first_stage=[first], overwrite=overwrite
        )
    assert [file.path.relative_to(out).as_posix() for file in files] == [
        "model.torchscript.pt",
        "first_stage_0/model.torchscript.pt",
    ]
    assert all(file.path.is_file() and file.passed for file in files)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["input"]["shape"] == ["batch", 3, *run.plan.patch_size]
    assert manifest["first_stage"]["folders"] == ["first_stage_0"]
    (channel,) = manifest["first_stage"]["channels"]
    assert (channel["index"], channel["classes"]) == (2, [1, 2])
    assert "Append the channels of first_stage." in manifest["recipe"]
    before = json.loads((out / "first_stage_0" / "manifest.json").read_text())
    assert before["first_stage"] is None
    assert before["input"]["shape"][1] == 2
