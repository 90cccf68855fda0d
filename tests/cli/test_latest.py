"""What `latest` stands for, and keys that are given twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from medtrain.cli._latest import lacks_checkpoint, lacks_judged, lacks_plan, lacks_weights, resolve
from medtrain.cli._options import Overrides
from medtrain.cli.app import app
from medtrain.crossval.folder import CrossvalFolder, CrossvalRecord
from medtrain.errors import UsageError
from medtrain.run.folder import RunFolder

Lacks = Callable[[Path], str | None]


def _make(root: Path, started: str, *, kind: type[RunFolder] = RunFolder) -> Path:
    folder = kind.create(experiment="liver", root=root)
    (folder.path / "config.yaml").write_text("seed: 0\n")
    (folder.path / "plan.json").write_text("{}")
    status = folder.path / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "started": f"2026-11-20T{started}:00+00:00"}))
    return folder.path


def _trained(run: Path) -> Path:
    step = run / "checkpoints" / "step_00000001"
    step.mkdir(parents=True)
    (step / "meta.json").write_text(json.dumps({"format": 1, "files": {}}))
    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


def test_the_newest_run_with_weights_is_taken_and_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _trained(_make(root, "08:00"))
    wanted = _trained(_make(root, "09:00"))
    newest = _make(root, "10:00")
    latest = root / "liver" / "latest"
    assert latest.resolve() == newest.resolve()
    assert resolve(latest, lacks_weights) == wanted
    assert capsys.readouterr().err == f"latest: {wanted}, for {newest.name} has no checkpoint\n"
    assert resolve(latest, lacks_plan) == newest  # a run without a checkpoint begins again
    assert capsys.readouterr().err == f"latest: {newest}\n"
    (newest / "plan.json").unlink()
    assert resolve(latest, lacks_plan) == wanted


@pytest.mark.parametrize(("lacks", "taken"), [(lacks_weights, True), (lacks_checkpoint, False)])
def test_a_cross_validation_predicts_and_is_not_exported(root: Path, lacks: Lacks, taken: bool) -> None:
    run = _trained(_make(root, "08:00"))
    crossval = _make(root, "09:00", kind=CrossvalFolder)
    folder = CrossvalFolder(crossval)
    folder.write_record(CrossvalRecord(num_folds=2, split_hashes=("a", "b")))
    assert resolve(root / "liver" / "latest", lacks) == run  # no fold is trained yet
    folder.write_record(CrossvalRecord(num_folds=2, split_hashes=("a", "b"), members=("fold_0",)))
    assert resolve(root / "liver" / "latest", lacks) == (crossval if taken else run)


def test_a_cross_validation_that_was_killed_is_judged_by_its_finished_folds(root: Path) -> None:
    run = _trained(_make(root, "08:00"))
    crossval = _make(root, "09:00", kind=CrossvalFolder)
    folder = CrossvalFolder(crossval)
    folder.write_record(CrossvalRecord(num_folds=2, split_hashes=("a", "b")))
    fold = RunFolder.create(experiment="liver", path=folder.fold(1))
    assert resolve(root / "liver" / "latest", lacks_judged) == run
    fold.finish("done", step=1, message="")
    (fold.evaluation / "summary.json").write_text("{}")
    assert resolve(root / "liver" / "latest", lacks_judged) == crossval
    assert resolve(root / "liver" / "latest", lacks_weights) == run


def test_all_processes_continue_the_run_that_the_first_one_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, latest = _make(root, "08:00"), root / "liver" / "latest"
    started: list[str] = []

    def run_processes(command: list[str], processes: int) -> int:
        started.extend(command)
        return 75

    def load(*args: object, **settings: object) -> dict[str, object]:
        return {}

    monkeypatch.setattr("medtrain.cli._processes.run_processes", run_processes)
    monkeypatch.setattr("medtrain.config.saved.load_saved", load)
    monkeypatch.setattr("medtrain.engine.build.continuation", load)
    words = ["resume", f"{latest}/", "--nproc", "2", "trainer.max_steps=5"]
    monkeypatch.setattr(sys, "argv", ["medtrain", *words])
    assert CliRunner().invoke(app, words).exit_code == 75
    assert started[3:] == ["resume", str(run), "trainer.max_steps=5"]


def test_the_word_alone_looks_below_outputs(in_tmp: Path) -> None:
    run = _trained(_make(Path("outputs"), "08:00"))
    assert resolve(Path("latest"), lacks_weights) == run
    Path("latest").mkdir()
    assert resolve(Path("latest"), lacks_weights) == Path("latest")  # a folder of that name
    assert resolve(run, lacks_weights) == run


def test_why_no_run_can_be_used(root: Path) -> None:
    run = _make(root, "08:00")
    with pytest.raises(UsageError, match=f"no run in .* can be used: {run.name} has no checkpoint"):
        resolve(root / "liver" / "latest", lacks_checkpoint)
    (root / "spleen").mkdir()
    with pytest.raises(UsageError, match="there is no run in"):
        resolve(root / "spleen" / "latest", lacks_checkpoint)
    with pytest.raises(UsageError, match="is not a folder"):
        resolve(root / "nowhere" / "latest", lacks_checkpoint)


@pytest.mark.parametrize(
    "words", [["evaluate"], ["predict", "IN", "OUT"], ["export", "--format", "onnx"], ["resume"]], ids=lambda w: w[0]
)
def test_the_commands_say_why_no_run_can_be_used(root: Path, words: list[str]) -> None:
    run = _make(root, "08:00")
    (run / "plan.json").unlink()
    done = CliRunner().invoke(app, [words[0], str(root / "liver" / "latest"), *words[1:]])
    assert done.exit_code == 2
    assert f"{run.name} " in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a.b=1", "c=2"], ""),
        (["a.b=1", "a.b=1"], ""),
        (["a.b=5", "c=1", "+a.b=9"], "note: a.b is given 2 times: `a.b=9` counts, not `a.b=5`\n"),
        (["x=a=b", "x=", "x=c"], "note: x is given 3 times: `x=c` counts, not `x=a=b`, `x=`\n"),
        (
            ["api_key=a1", "api_key=b2"],
            "note: api_key is given 2 times: `api_key=***` counts, not `api_key=***`\n",
        ),
        (["a[0].b=1", "a.0.b=2"], "note: a.0.b is given 2 times: `a.0.b=2` counts, not `a.0.b=1`\n"),
    ],
)
def test_of_two_values_for_a_key_the_last_counts_and_that_is_said(words: list[str], told: str) -> None:
    taken: list[str] = []
    command = typer.Typer()

    @command.command()
    def _main(overrides: Overrides = None) -> None:
        taken.extend(overrides or ())

    done = CliRunner().invoke(command, words)
    assert taken == words
    assert done.stderr == told
