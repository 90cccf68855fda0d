from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

import pytest

from medtrain.loggers.base import Logger
from medtrain.loggers.csv import CsvLogger
from medtrain.loggers.jsonl import JsonlLogger
from medtrain.run.folder import RunFolder
from medtrain.run.history import evaluations, read_metrics
from medtrain.run.report import write_report


def _log(logger: Logger) -> None:
    for step in (10, 20, 30):
        logger.log_scalars(step, step // 10, {"train/loss": 1 / step, "perf/step_s": 1.0})
    logger.log_scalars(30, 3, {"val/dice": 0.5, "val/hd95_mm": math.nan})
    logger.log_scalars(40, 4, {"val/dice": 0.4, "val/hd95_mm": 12.0})
    logger.close()


@pytest.mark.parametrize("kind", [CsvLogger, JsonlLogger])
def test_metrics_read_back(tmp_path: Path, kind: type[CsvLogger | JsonlLogger]) -> None:
    assert read_metrics(tmp_path) == []
    _log(kind(run_dir=tmp_path))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert rows[0] == {"step": 10, "epoch": 1, "train/loss": 0.1}
    found = evaluations(rows, "val/dice")
    assert [(row["step"], row["val/dice"]) for row in found] == [(30, 0.5), (40, 0.4)]
    assert math.isnan(found[0]["val/hd95_mm"])
    assert "train/loss" not in found[0]


@pytest.mark.parametrize(("name", "torn"), [("metrics.csv", "50,5,0.1,x"), ("metrics.jsonl", '{"step": 50, "ep')])
def test_a_row_that_is_being_written_is_left_out(tmp_path: Path, name: str, torn: str) -> None:
    _log((CsvLogger if name.endswith("csv") else JsonlLogger)(run_dir=tmp_path))
    with (tmp_path / name).open("a") as file:
        file.write(torn)
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20, 30, 40]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(experiment="liver", root=tmp_path)
    config = {"seed": 3, "model": {"name": "unet", "norm": "instance", "dropout": None}, "data": {"name": "msd"}}
    folder.write_inputs(config, ["model=unet"], ["medtrain", "train", "model=unet"])
    plan = {"patch_size": [32, 40, 48], "reasons": {"data.patch_size": "fits 4 GiB | and the median shape"}}
    folder.plan.write_text(json.dumps(plan))
    (folder.path / "data.json").write_text(json.dumps({"dataset": "Liver", "num_train": 104, "cases": {"a": "b"}}))
    _log(JsonlLogger(run_dir=folder.path))
    folder.start()
    folder.heartbeat(30, best={"metric": "val/dice", "value": 0.5, "step": 30})
    folder.finish("done", step=40, message="reached the limit")
    return folder


def test_the_report_tells_the_run(run: RunFolder) -> None:
    (run.path / "progress.png").write_bytes(b"")
    (run.path / "curves").mkdir()
    (run.path / "curves" / "val_dice.png").write_bytes(b"")
    (run.path / "previews").mkdir()
    for step in (9, 10):
        (run.path / "previews" / f"step_{step:08d}.png").write_bytes(b"")
    statistics = {"mean": 0.912345, "std": 0.05, "n": 5}
    summary = {
        "checkpoint": "step_00000030",
        "num_cases": 5,
        "mean": {"dice": 0.7},
        "classes": {"liver": {"dice": statistics}, "tumour": {"dice": {"mean": None, "std": None, "n": 0}}},
        "intervals": {"dice": [0.6, 0.8], "dice/liver": [0.85, 0.95], "dice/tumour": [None, None]},
        "confidence": 0.9,
    }
    (run.evaluation / "summary.json").write_text(json.dumps(summary))
    text = write_report(run.path).read_text()
    for part in (
        f"# liver / {run.name}",
        "**done** after 40 steps, reached the limit.",
        "Best val/dice: **0.5000** at step 30.",
        "| val/dice | 0.5000 | 0.4000 .. 0.5000 | 0.4000 |",
        "| val/hd95_mm | - | 12.0000 .. 12.0000 | 12.0000 |",
        "Final evaluation of step_00000030 on 5 cases",
        "| liver | 0.9123 +- 0.0500 |",
        "| tumour | - |",
        "| **mean** | **0.7000** |",
        "With 90 % intervals",
        "| liver | 0.9123 [0.8500, 0.9500] |",
        "| tumour | - [-, -] |",
        "| **mean** | 0.7000 [0.6000, 0.8000] |",
        "![progress](progress.png)",
        "[val_dice](curves/val_dice.png)",
        "previews/step_00000010.png",
        "| model | unet | norm=instance |",
        "| seed | 3 |",
        "| data.patch_size | [32, 40, 48] | fits 4 GiB \\| and the median shape |",
        "| num_train | 104 |",
        "medtrain train model=unet",
        "medtrain predict  ",
    ):
        assert part in text
    assert "dropout" not in text
    assert "previews/step_00000009.png" not in text


def test_the_report_of_labelled_images_tells_derived_values_and_what_to_type(tmp_path: Path) -> None:
    folder = RunFolder.create(experiment="grades", root=tmp_path)
    data = {"name": "csv", "channels": 1, "normalization": "auto", "image_size": None}
    folder.write_inputs({"seed": 0, "data": data}, [], ["medtrain", "train"])
    reasons = {"data.channels": "grey", "data.normalization": "dataset", "data.image_size": "all alike"}
    plan = {"in_channels": 1, "mean": [0.5], "std": [0.25], "image_size": [28, 28], "targets": [], "reasons": reasons}
    folder.plan.write_text(json.dumps(plan))
    folder.splits.write_text(json.dumps({"train": ["a"], "val": ["b"], "test": ["c"]}))
    folder.finish("done", step=4, message="reached the limit")
    text = write_report(folder.path).read_text()
    for part in (
        "| data.channels | 1 | grey |",
        '| data.normalization | {"mean": [0.5], "std": [0.25]} | dataset |',
        "| data.image_size | [28, 28] | all alike |",
        f"medtrain evaluate {folder.path} --part test\n",
        f"medtrain predict  {folder.path} IN OUT.csv",
    ):
        assert part in text


def test_a_run_that_failed_early_has_a_report(tmp_path: Path) -> None:
    folder = RunFolder.create(experiment="liver", root=tmp_path)
    folder.finish("failed", step=0, message="DataError: nothing there")
    text = write_report(folder.path).read_text()
    assert "**failed** after 0 steps, DataError: nothing there." in text
    assert "Best" not in text
    assert f"medtrain resume   {folder.path}    # go on\n" in text


def test_damaged_files_do_not_stop_the_report(run: RunFolder) -> None:
    (run.evaluation / "summary.json").write_text("{")
    run.plan.write_text("[]")
    assert "**done**" in write_report(run.path).read_text()


@pytest.mark.parametrize(
    ("status", "limits", "advice"),
    [
        ("stopped", {"max_steps": None, "max_time": "20min"}, "    # go on"),
        ("done", {"max_steps": None, "max_time": "20min"}, " trainer.max_time=TIME    # train longer than 20min"),
        ("done", {"max_epochs": 5}, " trainer.max_epochs=N    # train longer than 5"),
        ("done", {"max_steps": 40}, " trainer.max_steps=N    # train longer than 40"),
        (
            "done",
            {"max_steps": 40, "max_time": "20min"},
            " trainer.max_steps=N trainer.max_time=TIME    # train longer than 40 and 20min",
        ),
    ],
)
def test_the_advice_fits_how_the_run_ended(
    run: RunFolder, status: Literal["stopped", "done"], limits: dict[str, object], advice: str
) -> None:
    run.write_inputs({"trainer": limits}, [], ["medtrain", "train"])
    run.finish(status, step=40, message="")
    lines = write_report(run.path).read_text().splitlines()
    assert [line for line in lines if line.startswith("medtrain resume")] == [f"medtrain resume   {run.path}{advice}"]


def test_values_of_the_plan_are_whole(run: RunFolder) -> None:
    channels = [{"scheme": "zscore", "lower": 0.0, "upper": 0.0, "mean": 0.0, "std": 1.0, "nonzero": True}] * 4
    run.plan.write_text(json.dumps({"normalization": channels, "reasons": {"data.normalization": "by channel name"}}))
    assert f"| data.normalization | {json.dumps(channels)} | by channel name |" in write_report(run.path).read_text()


def test_the_worst_cases_are_those_that_the_task_named(run: RunFolder) -> None:
    worst = [{"case_id": name, "dice": score} for name, score in zip("defgah", (0.1, 0.2, 0.3, 0.4, 0.5, 0.8))]
    (run.evaluation / "summary.json").write_text(json.dumps({"worst": worst}))
    text = write_report(run.path).read_text()
    section = text.partition("## Worst cases")[2].partition("##")[0]
    found = [line for line in section.splitlines() if line.startswith("| ")]
    assert found == [
        "| Case | Dice |",
        "| d | 0.1000 |",
        "| e | 0.2000 |",
        "| f | 0.3000 |",
        "| g | 0.4000 |",
        "| a | 0.5000 |",
    ]
    (run.evaluation / "summary.json").write_text("{}")
    assert "Worst cases" not in write_report(run.path).read_text()


def test_metrics_of_a_whole_split_come_with_their_intervals(run: RunFolder) -> None:
    summary = {
        "checkpoint": "step_00000016", "num_cases": 36, "num_patients": 30, "confidence": 0.95,
        "metrics": {"auroc": 0.8125, "accuracy": 0.75}, "intervals": {"auroc": [0.7, 0.9]},
        "decision": {"threshold/sick": 0.25},
    }  # fmt: skip
    (run.evaluation / "summary.json").write_text(json.dumps(summary))
    text = write_report(run.path).read_text()
    assert "## Final evaluation of step_00000016 on 36 cases, 30 patients" in text
    assert "| auroc | 0.8125 | 0.7000 .. 0.9000 |" in text
    assert "| accuracy | 0.7500 | - |" in text
    assert "Chosen on the validation part: threshold/sick = 0.2500." in text


def test_the_newest_evaluation_of_the_test_part_is_told(run: RunFolder) -> None:
    for step, value in ((16, 0.7), (32, 0.8)):
        folder = run.evaluation / f"test_step_{step:08d}"
        folder.mkdir()
        summary = {"checkpoint": f"step_{step:08d}", "num_cases": 9, "num_patients": 9}
        summary |= {"metrics": {"auroc": value, "recall_macro": 0.6}, "printed": ["auroc"]}
        (folder / "summary.json").write_text(json.dumps(summary))
    text = write_report(run.path).read_text()
    assert "## Test part of step_00000032 on 9 cases, 9 patients" in text
    assert "| auroc | 0.8000 | - |" in text
    assert "recall_macro" not in text
    assert "Every case: `evaluation/test_step_00000032/cases.csv`." in text
    assert "step_00000016 on 9" not in text


def test_settings_and_facts_are_whole(run: RunFolder) -> None:
    root = "/data/" + "a-long-name/" * 12
    run.write_config({"data": {"name": "msd", "root": root}, "seed": 1})
    names = [f"decoder.stage_{index}.convolution.weight" for index in range(10)]
    (run.path / "initial_weights.json").write_text(json.dumps({"file": root, "missing": names}))
    (run.path / "data.json").write_text(json.dumps({"store": root}))
    text = write_report(run.path).read_text()
    assert f"root={root} |" in text
    assert f"| file | {root} |" in text
    assert f"| store | {root} |" in text
    assert f"| missing | {', '.join(names[:8])} and 2 more |" in text


@pytest.mark.parametrize(
    ("program", "shown"),
    [("/venv/bin/medtrain", "medtrain"), ("/venv/lib/medtrain/__main__.py", "python -m medtrain")],
)
def test_the_command_can_be_typed(run: RunFolder, program: str, shown: str) -> None:
    (run.path / "command.txt").unlink()
    run.write_inputs({"seed": 1}, [], [program, "train", "data.root=/my scans", "logger.wandb.api_key=abc"])
    assert f"\n{shown} train 'data.root=/my scans' 'logger.wandb.api_key=***'\n" in write_report(run.path).read_text()
    assert json.loads((run.path / "env.json").read_text())["command"][0] == shown.split()[0]
