"""A cross-validation through the command line: train, be killed, go on, fail in one fold, be put together."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from medtrain.config.compose import load_config
from medtrain.config.imports import import_modules
from medtrain.config.saved import load_saved
from medtrain.crossval import launch
from medtrain.crossval.folder import CrossvalFolder, CrossvalRecord, is_crossval, judged_by
from medtrain.crossval.launch import check_request, start_crossval
from medtrain.crossval.probe import probe
from medtrain.crossval.report import write_crossval_report
from medtrain.crossval.summary import held_out_cases, read_member
from medtrain.data.io.nifti import read_label
from medtrain.engine.launch import EXIT_STOPPED, _finish
from medtrain.engine.loop import FitResult
from medtrain.errors import UsageError
from medtrain.inference.postprocess import Structure, keep_largest_components
from medtrain.registry import build
from medtrain.run.folder import RunFolder

Command = Callable[..., int]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("data")
    root = place / "phantom"
    build("data", {"name": "phantom", "root": str(root), "num_cases": 4, "num_test_cases": 1}).discover()
    return [
        "data=msd", f"data.root={root}", f"data.store={place / 'store'}", "data.num_folds=2",
        "data.patch_size=[8,16,16]", "data.spacing=[9,9,9]", "data.batch_size=2", "model.channels=[4,8]",
        "trainer.precision=fp32", "trainer.num_threads=1", "trainer.max_steps=4", "trainer.eval_every=2step",
        "trainer.checkpoint_every=1step", "trainer.sanity_check=false", "trainer.device=cpu",
        "task.surface_metrics=never", "logger=[csv]", "callbacks=[accidents]", "inference.mirror=false",
    ]  # fmt: skip


def _alone(words: list[str]) -> list[str]:
    """Without the component of this module."""
    return [word for word in words if not word.startswith("callbacks=")]


MODULE = """
import multiprocessing, os, signal
from pathlib import Path
from types import SimpleNamespace
from medtrain.callbacks.base import Callback
from medtrain.errors import MedtrainError
from medtrain.registry import register

@register("callbacks", "accidents")
class Accidents(Callback):
    \"\"\"Kills the first fold and the whole cross-validation after two steps, and lets the second fold fail.\"\"\"

    def on_fit_start(self, view):
        if view.run_dir.name == "fold_1" and not Path("mended").exists():
            raise MedtrainError("a fold that fails")

    def on_checkpoint(self, view, path):
        if view.run_dir.name == "fold_0" and view.step == 2 and not Path("killed").exists():
            Path("killed").touch()
            os.kill(multiprocessing.parent_process().pid, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
"""


def _command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MEDTRAIN_NO_PROGRESS": "1"}
    command = [sys.executable, "-m", "medtrain", *map(str, words), "--import", "accidents"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cross-validation of two folds that was killed in the first one, went on, failed in the second, and went on."""
    place = tmp_path_factory.mktemp("crossval")
    (place / "accidents.py").write_text(MODULE)
    folder = place / "cv"
    before = Path.cwd()
    os.chdir(place)
    try:
        killed = _command("crossval", *words, f"run.dir={folder}")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert [path.name for path in (folder / "fold_0" / "checkpoints").glob("step_*/meta.json")]
        assert not (folder / "fold_1").exists()

        failed = _command("resume", folder)
        assert failed.returncode == 1, failed.stderr
        assert "resumed at step 2" in failed.stderr
        assert "fold_1 failed: a fold that fails" in failed.stderr
        record = CrossvalFolder.open(folder).read_record()
        assert (list(record.members), record.num_cases) == (["fold_0"], 2)
        assert record.failed == {"fold_1": "a fold that fails"}
        assert json.loads((folder / "status.json").read_text())["status"] == "failed"

        (place / "mended").touch()
        done = _command("resume", folder)
        assert done.returncode == 0, done.stderr
        assert "1 of 2 folds are done" in done.stderr
        assert CrossvalFolder.open(folder).read_record().failed == {}
        import_modules(["accidents"])
        yield folder
    finally:
        os.chdir(before)


def test_every_case_is_judged_by_the_fold_that_has_not_seen_it(trained: Path) -> None:
    folds = json.loads((trained / "splits.json").read_text())
    with (trained / "cases.csv").open() as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted(case for fold in folds for case in fold["val"])
    assert len(rows) == 4
    for case_id, row in rows.items():
        assert judged_by(trained, ("fold_0", "fold_1"), case_id) == f"fold_{row['fold']}"
        assert case_id in folds[int(row["fold"])]["val"]
        assert case_id not in folds[int(row["fold"])]["train"]


def test_metrics_are_means_over_folds_and_over_cases(trained: Path) -> None:
    record = json.loads((trained / "crossval.json").read_text())
    assert record["members"] == ["fold_0", "fold_1"]
    assert record["num_cases"] == 4
    summaries = [json.loads((trained / name / "evaluation" / "summary.json").read_text()) for name in record["members"]]
    dice = [summary["mean"]["dice"] for summary in summaries]
    found = record["metrics"]["folds"]["dice"]
    assert found["values"] == dice
    assert found["mean"] == pytest.approx(np.mean(dice), abs=1e-12)
    assert found["std"] == pytest.approx(np.std(dice, ddof=1), abs=1e-12)
    with (trained / "cases.csv").open() as file:
        livers = [float(row["dice/liver"]) for row in csv.DictReader(file)]
    assert record["metrics"]["cases"]["dice/liver"] == pytest.approx(np.mean(livers), abs=1e-12)
    report = (trained / "report.md").read_text()
    assert f"{found['mean']:.4f} | {found['std']:.4f}" in report
    assert "Post-processing, chosen on 4 held-out cases" in report
    low, high = record["metrics"]["intervals"]["dice"]
    assert low <= record["metrics"]["cases"]["dice"] <= high
    assert "95 % interval" in report
    worst = record["metrics"]["worst"]
    with (trained / "cases.csv").open() as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    means = {
        case: np.nanmean([float(v or "nan") for k, v in row.items() if k.startswith("dice/")])
        for case, row in rows.items()
    }
    assert worst[0]["case_id"] == min(means, key=lambda case: (means[case], case))
    assert worst[0]["fold"] == f"fold_{rows[worst[0]['case_id']]['fold']}"
    assert f"| {worst[0]['case_id']} | {worst[0]['score']:.4f} | {worst[0]['fold']} |" in report


def test_folds_share_their_plan_and_fit_intensities_on_their_own(trained: Path) -> None:
    first, second = (json.loads((trained / name / "plan.json").read_text()) for name in ("fold_0", "fold_1"))
    for key in ("spacing", "patch_size", "batch_size", "channels", "strides", "kernel_sizes"):
        assert first[key] == second[key], key
    assert first["normalization"] != second["normalization"]  # of CT, from each fold's training part
    for index, name in enumerate(("fold_0", "fold_1")):
        config = yaml.safe_load((trained / name / "config.yaml").read_text())
        assert config["data"]["fold"] == index
        assert config["data"]["splits"] == str(trained / "splits.json")
        assert json.loads((trained / name / "status.json").read_text())["status"] == "done"


def test_predictions_are_kept_on_the_scans_grids(trained: Path, words: list[str]) -> None:
    root = Path(next(word for word in words if word.startswith("data.root=")).partition("=")[2])
    for name in ("fold_0", "fold_1"):
        files = sorted((trained / name / "evaluation" / "predictions").glob("*.nii.gz"))
        assert len(files) == 2
        for file in files:
            truth = read_label(root / "labelsTr" / file.name)
            predicted = read_label(file)
            assert predicted.array.shape == truth.array.shape
            assert predicted.grid.matches(truth.grid) is None


def test_the_status_says_how_it_went(trained: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    status = json.loads((trained / "status.json").read_text())
    assert status["status"] == "done"
    assert status["step"] == 8
    assert status["message"].startswith("2 of 2 folds: dice ")
    assert medtrain("runs", trained.parent, "--format", "json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [Path(run["run"]).name for run in listed] == ["cv"]  # its folds are not listed one by one
    assert listed[0]["metric"] == "val/dice"


def test_a_fold_is_done_again_where_it_is_lost_and_the_others_stay(
    trained: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "crossval.json").read_text()
    stamps = [(trained / f"fold_{i}" / "checkpoints" / "last.json").stat().st_mtime_ns for i in range(2)]
    assert medtrain("resume", trained, "--import", "accidents") == 0
    assert "2 of 2 folds are done" in capsys.readouterr().err
    assert [(trained / f"fold_{i}" / "checkpoints" / "last.json").stat().st_mtime_ns for i in range(2)] == stamps
    assert (trained / "crossval.json").read_text() == before
    assert medtrain("evaluate", trained) == 0
    assert (trained / "crossval.json").read_text() == before


def test_folds_are_judged_where_the_data_lies_now(trained: Path, words: list[str], medtrain: Command) -> None:
    root = Path(next(word for word in words if word.startswith("data.root=")).partition("=")[2])
    record, moved = json.loads((trained / "crossval.json").read_text()), root.with_name("moved")
    root.rename(moved)
    try:
        assert medtrain("evaluate", trained, f"data.root={moved}", "--device", "cpu") == 0
    finally:
        moved.rename(root)
    assert json.loads((trained / "crossval.json").read_text())["chosen"] == record["chosen"]


def test_put_together_again_it_tells_how_things_are_now(
    trained: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fold that failed was repaired by itself, and the label maps were deleted in between."""
    folder = CrossvalFolder.open(trained)
    record, status = folder.read_record(), folder.read_status()
    earlier = dataclasses.replace(
        record,
        members=("fold_0",),
        failed={"fold_1": "a fold that fails"},
        postprocess={"keep_largest": ["liver"]},
        chosen={**record.chosen, "num_cases": 3},
    )
    maps, kept = trained / "fold_0" / "evaluation" / "predictions", trained / "kept"
    maps.rename(kept)
    try:
        folder.write_record(earlier)
        folder.restore(dataclasses.replace(status, status="failed", step=4), "1 of 2 folds")
        assert medtrain("evaluate", trained) == 0
        found, now = folder.read_record(), folder.read_status()
    finally:
        kept.rename(maps)
        folder.write_record(record)
        folder.restore(status, status.message)
    assert list(found.members) == ["fold_0", "fold_1"]
    assert found.failed == {}
    assert (now.status, now.step, now.message, now.best) == ("done", 8, status.message, status.best)
    assert found.postprocess == {"keep_largest": ["liver"]}
    assert found.chosen["num_cases"] == 3
    assert "post-processing is not chosen again, and stays as it was" in capsys.readouterr().err
    assert "failed" not in (trained / "report.md").read_text()


def test_folds_are_judged_under_other_settings(
    trained: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ("crossval.json", "cases.csv", "report.md", "status.json", "evaluation/summary.json")
    before = {name: (trained / name).read_bytes() for name in kept}
    assert medtrain("evaluate", trained, "inference.mirror=true", "task.surface_metrics=final") == 2
    assert "task.surface_metrics" in capsys.readouterr().err
    words = ("inference.mirror=true", "task.lesions=[cancer]", "--device", "cpu")
    assert medtrain("evaluate", trained, *words) == 0
    found = json.loads((trained / "evaluation" / "val_best" / "folds.json").read_text())
    assert found["overrides"] == ["inference.mirror=true", "task.lesions=[cancer]"]
    assert (found["members"], found["num_cases"]) == (["fold_0", "fold_1"], 4)
    assert "lesion_f1" in found["metrics"]["folds"]
    # each fold as if it were judged alone
    summaries = [next((trained / name / "evaluation").glob("val_step_*/summary.json")) for name in found["members"]]
    alone = [json.loads(summary.read_text())["mean"]["dice"] for summary in summaries]
    assert found["metrics"]["folds"]["dice"]["values"] == alone
    with (trained / "evaluation" / "val_best" / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    folds = [judged_by(trained, found["members"], row["case_id"]) for row in rows]
    assert [f"fold_{row['fold']}" for row in rows] == folds
    livers = [float(row["dice/liver"]) for row in rows]
    assert found["metrics"]["cases"]["dice/liver"] == pytest.approx(np.mean(livers), abs=1e-12)
    assert {name: (trained / name).read_bytes() for name in kept} == before  # what it came to stays

    case = rows[-1]["case_id"]
    assert medtrain("evaluate", trained, "--case", case, "--device", "cpu") == 0
    (fold,) = (path.parent.parent.name for path in trained.glob(f"fold_*/evaluation/case_{case}_step_*"))
    assert fold == folds[-1]


def test_commands_for_one_run_say_which(trained: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["export", trained, "--format", "onnx"],
        ["evaluate", trained, "--part", "train"],
        ["resume", trained, "trainer.max_steps=9"],
    ):
        assert medtrain(*words) == 2
        error = capsys.readouterr().err
        assert "cross-validation" in error
        assert f"{trained}/fold_0" in error


def test_what_makes_no_cross_validation_is_refused(words: list[str], tmp_path: Path) -> None:
    config = load_config(_alone(words)).tree
    with pytest.raises(UsageError, match=r"data\.fold names one"):
        check_request(config, [*words, "data.fold=0"])
    without: dict[str, Any] = {**config, "trainer": {**config["trainer"], "final_evaluation": False}}
    with pytest.raises(UsageError, match=r"trainer\.final_evaluation is false"):
        check_request(without, words)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not empty"):  # said before anything is read
        start_crossval({**config, "run": {**config["run"], "dir": str(tmp_path)}}, overrides=words)
    assert not is_crossval(tmp_path)
    with pytest.raises(UsageError, match="is not a cross-validation"):
        CrossvalFolder.open(tmp_path)
    splits = tmp_path / "parts.json"
    splits.write_text("{}")
    images = load_config(["data=phantom_images", f"data.root={tmp_path / 'p'}", f"data.splits={splits}"]).tree
    with pytest.raises(UsageError, match="holds one division of the images"):
        probe(images, ())


def test_only_cases_of_the_folds_enter_the_plan(words: list[str], tmp_path: Path) -> None:
    """A split file may leave cases out; the plan of all folds does not see them either."""
    config = load_config(_alone(words)).tree
    every = probe(config, ())
    assert every.folds is not None
    ids = sorted({case for fold in every.folds for case in fold["val"]})
    folds = [{"train": [ids[0]], "val": [ids[1]]}, {"train": [ids[1]], "val": [ids[0]]}]
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps(folds))
    some = probe({**config, "data": {**config["data"], "splits": str(splits)}}, ())
    assert some.folds == folds
    assert len(some.split_hashes) == 2
    assert some.split_hashes != every.split_hashes
    assert "2 training cases" in "".join(reason for _, _, reason in some.values) or some.plan != every.plan
    assert some.config["data"]["patch_size"] == [8, 16, 16]


def test_a_fold_can_be_used_as_the_run_it_is(trained: Path) -> None:
    config = load_saved(trained / "fold_1")
    assert config["trainer"]["save_predictions"] is True
    assert config["data"]["fold"] == 1


def test_all_models_segment_together_with_the_chosen_postprocessing(
    trained: Path, words: list[str], tmp_path: Path, medtrain: Command
) -> None:
    root = Path(next(word for word in words if word.startswith("data.root=")).partition("=")[2])
    folder = CrossvalFolder.open(trained)
    record = folder.read_record()
    try:
        folder.write_record(dataclasses.replace(record, postprocess={"keep_largest": ["foreground"]}))
        chosen, plain = tmp_path / "chosen", tmp_path / "plain"
        common = ["--device", "cpu", "--import", "accidents"]
        assert medtrain("predict", trained, root / "imagesTs", chosen, *common) == 0
        assert medtrain("predict", trained, root / "imagesTs", plain, "inference.keep_largest=[]", *common) == 0
    finally:
        folder.write_record(record)
    (file,) = sorted(path.name for path in chosen.glob("*.nii.gz"))
    kept, everything = (read_label(place / file).array for place in (chosen, plain))
    assert (kept == keep_largest_components(everything, [Structure(())])).all()


def test_what_was_annotated_comes_with_the_case(trained: Path, tmp_path: Path) -> None:
    member = read_member(CrossvalFolder.open(trained), "fold_0", ())
    assert [case.annotated for case in held_out_cases([member])] == [None, None]
    first = member.rows[0]["case_id"]
    (tmp_path / "annotated.json").write_text(json.dumps({first: ["liver"]}))
    data = {**member.config["data"], "annotated": str(tmp_path / "annotated.json")}
    partly = dataclasses.replace(member, config={**member.config, "data": data})
    assert [case.annotated for case in held_out_cases([partly])] == [(True, False), None]


def test_a_case_is_held_out_once(words: list[str], tmp_path: Path) -> None:
    config = load_config(_alone(words)).tree
    found = build("data", {**config["data"], "fold": 0}).find()
    ids = sorted(case for fold in found.folds for case in fold["val"])
    folds = [{"train": ids[2:], "val": ids[:2]}, {"train": ids[:1], "val": ids[1:3]}]
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps(folds))
    with pytest.raises(UsageError, match=f"1 case is held out by several folds, such as {ids[1]} by the folds 0, 1"):
        probe({**config, "data": {**config["data"], "splits": str(splits)}}, ())


def test_weights_that_have_seen_held_out_cases_are_told(words: list[str], tmp_path: Path) -> None:
    config = load_config(_alone(words)).tree
    found = build("data", {**config["data"], "fold": 0}).find()
    (tmp_path / "splits.json").write_text(json.dumps(found.folds))
    earlier = {"data": {"fold": 0}, "trainer": {"init_from": None}, "model": {}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(earlier))
    used = {case_id: "" for fold in found.folds for case_id in fold["val"]}
    (tmp_path / "data.json").write_text(json.dumps({"dataset": found.dataset_name, "cases": used}))
    save_file({"weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    trainer = {**config["trainer"], "init_from": str(tmp_path / "w.safetensors")}
    facts = probe({**config, "trainer": trainer}, ())
    assert list(facts.seen) == [1]  # it was trained on what fold 1 holds out
    assert facts.seen[1].startswith("2 of 2 validation cases")
    assert str(tmp_path) in facts.seen[1]

    record = CrossvalRecord(num_folds=2, split_hashes=("a", "b"), members=("fold_0", "fold_1"))
    (tmp_path / "cv").mkdir()
    folder = CrossvalFolder(tmp_path / "cv")
    honest = write_crossval_report(folder, record).read_text()
    assert "each by the model that was not trained on it" in honest
    told = write_crossval_report(folder, dataclasses.replace(record, seen={"fold_1": facts.seen[1]})).read_text()
    assert "each by the model that was not trained on it" not in told
    assert f"**fold_1:** {facts.seen[1]}." in told


def test_what_was_killed_before_it_was_whole_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = SimpleNamespace(
        config={"run": {}, "trainer": {}, "logger": {}, "data": {}}, plan={}, folds=[], seen={}, split_hashes=("a", "b")
    )
    path = tmp_path / "cv"

    def killed(folder: CrossvalFolder, config: object) -> None:
        status = json.loads((folder.path / "status.json").read_text())
        (folder.path / "status.json").write_text(json.dumps({**status, "pid": 2**22 + 1}))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CrossvalFolder, "write_config", killed)
        with pytest.raises(KeyboardInterrupt):
            launch._begin(CrossvalFolder.create(experiment="", path=path), facts, ["data=msd"], None)
    assert {"plan.json", "splits.json", "crossval.json"} <= {entry.name for entry in path.iterdir()}
    with pytest.raises(UsageError, match=r"it has no config\.yaml") as caught:
        load_saved(path)
    assert "start it again" in str(caught.value.hint)
    folder = CrossvalFolder.create(experiment="", path=path)
    assert [entry.name for entry in path.iterdir()] == ["status.json"]
    launch._begin(folder, facts, ["data=msd"], None)
    assert folder.config.is_file()
    with pytest.raises(UsageError, match="already holds a run"):
        CrossvalFolder.create(experiment="", path=path)


def test_a_fold_that_is_stopped_leaves_it_to_the_whole_to_say_how_to_continue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder.create(experiment="", path=tmp_path / "fold_0")
    result = FitResult("stopped", "received SIGINT", 3, None)
    dist = SimpleNamespace(is_main=True)
    with caplog.at_level("INFO", logger="medtrain"):
        ended = _finish(None, folder, {}, result, dist)  # type: ignore[arg-type]
    assert ended.exit_code == EXIT_STOPPED
    assert caplog.messages == ["stopped at step 3 (received SIGINT)"]
