"""`medtrain export`: what it prints, where it writes, how it fails."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from medtrain.cli.export import export
from medtrain.errors import MedtrainError
from medtrain.export.exporter import DEFAULT_TOLERANCE
from medtrain.export.formats import FORMATS
from medtrain.export.run import summarize

APP = typer.Typer()
APP.command()(export)


@pytest.fixture
def opened(make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Make every run folder open as the run in miniature; returns what the opener was asked for."""
    run = make_run()
    asked: dict[str, Any] = {"folder": str(run.run_dir)}

    def load_run(run_dir: Path, config: Any, **options: Any) -> Any:
        asked.update(options, run_dir=run_dir)
        return run

    monkeypatch.setattr("medtrain.config.saved.load_saved", lambda run_dir, imports: run.config)
    monkeypatch.setattr("medtrain.export.run.load_run", load_run)
    monkeypatch.setattr("medtrain.export.run.setup_logging", lambda: None)
    monkeypatch.setattr(
        "medtrain.export.run.scan_patch", lambda config, plan: ("liver_0", torch.ones(2, *plan.patch_size))
    )
    return asked


def test_it_writes_into_the_run_and_prints_the_verdicts(opened: dict[str, Any]) -> None:
    result = CliRunner().invoke(APP, [opened["folder"], "--format", "torch_export", "--format", "torchscript"])
    assert result.exit_code == 0, result.output
    folder = Path(opened["folder"]) / "export"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.pt2", "model.torchscript.pt"]
    header, first, second, *_ = result.stdout.splitlines()
    assert header.split() == ["format", "file", "size", "max", "error", "allowed", "same", "labels", "compared", "on"]
    assert first.startswith("torch_export  model.pt2")
    assert second.startswith("torchscript   model.torchscript.pt")
    assert first.endswith("100.000 %    random, case liver_0")
    assert str(folder / "manifest.json") in result.output
    assert "predict.py" not in result.output  # it runs ONNX files only
    assert (opened["checkpoint"], opened["device"], opened["run_dir"]) == ("best", "cpu", Path(opened["folder"]))


def test_it_says_which_weights_these_are_and_how_to_use_them_without_medtrain(
    opened: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "medtrain.export.run"):
        result = CliRunner().invoke(APP, [opened["folder"], "--format", "onnx"])
    assert result.exit_code == 0, result.output
    assert "exporting 20261120-09-3fa2 at step 1200: val/dice 0.8750, averaged weights (ema)" in caplog.messages
    script = Path(opened["folder"]) / "export" / "predict.py"
    assert script.exists()
    assert result.output.splitlines()[-1].endswith(f"without medtrain: python {script} SCAN.nii.gz OUT.nii.gz")


def test_it_says_that_the_run_predicts_in_another_precision(
    make_run: Callable[..., Any],
    opened: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = make_run().config
    with caplog.at_level("INFO", "medtrain.export.run"):
        assert CliRunner().invoke(APP, [opened["folder"], "--format", "torch_export"]).exit_code == 0
    assert "the run predicts in" not in caplog.text
    config["trainer"]["precision"] = "bf16"
    monkeypatch.setattr("medtrain.config.saved.load_saved", lambda run_dir, imports: config)
    with caplog.at_level("INFO", "medtrain.export.run"):
        result = CliRunner().invoke(APP, [opened["folder"], "--format", "torch_export", "--overwrite"])
    assert result.exit_code == 0, result.output
    assert "the run predicts in bf16 and the files in float32: probabilities may differ by 0.01" in caplog.messages


def test_weights_that_were_never_evaluated_nor_averaged_are_called_so(make_run: Callable[..., Any]) -> None:
    run = make_run()
    run.weights, run.metrics = "raw", {}
    assert summarize(run) == "20261120-09-3fa2 at step 1200: not evaluated, weights as trained, not averaged"


def test_the_options_are_passed_on(opened: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "here" / "it" / "goes"
    options = ["--out", str(out), "--checkpoint", "last", "--device", "auto", "--tolerance", "0.002"]
    result = CliRunner().invoke(APP, [opened["folder"], "--format", "torchscript", *options])
    assert result.exit_code == 0, result.output
    assert (opened["checkpoint"], opened["device"]) == ("last", "auto")
    (file,) = json.loads((out / "manifest.json").read_text())["files"]
    assert file["parity"]["tolerance"] == 0.002

    result = CliRunner().invoke(APP, [opened["folder"], "--format", "torchscript", "--out", str(out)])
    assert result.exit_code == 2
    assert "--overwrite" in result.output
    result = CliRunner().invoke(APP, [opened["folder"], "--format", "torchscript", "--out", str(out), "--overwrite"])
    assert result.exit_code == 0, result.output


def test_without_the_data_random_input_is_enough(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(config: Any, plan: Any) -> Any:
        raise MedtrainError("there is no folder Task03_Liver")

    monkeypatch.setattr("medtrain.export.run.scan_patch", absent)
    result = CliRunner().invoke(APP, [opened["folder"], "--format", "torchscript"])
    assert result.exit_code == 0, result.output
    assert "there is no folder Task03_Liver" in caplog.text


def test_a_failed_comparison_is_exit_code_1(opened: dict[str, Any]) -> None:
    opened_run = CliRunner().invoke(APP, [opened["folder"], "--format", "onnx", "--tolerance", "1e-12"])
    assert opened_run.exit_code == 1
    assert "error: onnx: the exported file differs" in opened_run.output
    assert not (Path(opened["folder"]) / "export").exists()


def test_an_unknown_format_is_exit_code_2(opened: dict[str, Any]) -> None:
    result = CliRunner().invoke(APP, [opened["folder"], "--format", "tensorrt"])
    assert result.exit_code == 2
    assert "run_dir" not in opened  # before anything was loaded
    assert "unknown export format `tensorrt`; available: torchscript, onnx, torch_export" in result.output


def test_the_help_agrees_with_the_code() -> None:
    assert inspect.signature(export).parameters["tolerance"].default == DEFAULT_TOLERANCE
    assert [name for name in FORMATS if name not in inspect.getsource(export)] == []
