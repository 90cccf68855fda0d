"""The main job through the command line: train, stop, resume, evaluate, predict, export."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medtrain.engine import clock, launch, loop
from tests.e2e.conftest import read_rows

Command = Callable[..., int]


def _weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step_{step:08d}"
    raw, ema = load_file(folder / "model.safetensors"), load_file(folder / "ema.safetensors")
    return {f"raw.{k}": v for k, v in raw.items()} | {f"ema.{k}": v for k, v in ema.items()}


@pytest.fixture(scope="module")
def trained(phantom: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run of eight steps, and the words that made it."""
    from medtrain.config.compose import load_config
    from medtrain.engine.launch import start_run
    from tests.e2e.conftest import TINY

    run = tmp_path_factory.mktemp("runs") / "straight"
    words = [
        "data=msd", f"data.root={phantom}", f"data.store={store}", "data.num_folds=3", *TINY,
        "trainer.max_steps=8", "trainer.eval_every=4step", "trainer.checkpoint_every=3step", "trainer.log_every=2step",
        "trainer.accumulate=2", "model.dropout=0.2",
    ]  # fmt: skip
    composed = load_config([*words, f"run.dir={run}"])
    outcome = start_run(composed.tree, overrides=composed.overrides)
    assert outcome.exit_code == 0
    return run, words


def test_the_run_folder_tells_the_whole_story(trained: tuple[Path, list[str]]) -> None:
    run, words = trained
    for name in ("config.yaml", "command.txt", "env.json", "plan.json", "splits.json", "data.json", "report.md"):
        assert (run / name).stat().st_size > 0, name
    assert (run / "overrides.txt").read_text().splitlines()[: len(words)] == words
    assert json.loads((run / "status.json").read_text())["status"] == "done"
    rows = {row["step"]: row for row in read_rows(run)}
    assert sorted(rows) == [2, 4, 6, 8]
    assert {"val/dice", "val/dice/liver", "val/hd95_mm", "val/nsd"} <= rows[8].keys()
    assert "derived data.spacing" in (run / "log.txt").read_text()
    cases = (run / "evaluation" / "cases.csv").read_text().splitlines()
    assert len(cases) == 1 + 2  # header and the held-out third of six cases
    assert not list(run.rglob("*.tmp"))


def test_resume_after_kill_9_is_bit_identical(
    trained: tuple[Path, list[str]], tmp_path: Path, medtrain: Command
) -> None:
    """The killed process has logged and checkpointed different steps; two workers instead of none read on."""
    straight, words = trained
    run = tmp_path / "killed"
    # killed by its own callback in the middle of a window, as hard as a kill from outside
    script = (
        "import os, signal, sys\n"
        "from medtrain.engine.loop import Engine\n"
        "original = Engine.train_step\n"
        "def train_step(self, batches):\n"
        "    if self.step == 5:\n"
        "        next(batches)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    original(self, batches)\n"
        "Engine.train_step = train_step\n"
        "from medtrain.cli.app import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "train", *words, f"run.dir={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert json.loads((run / "status.json").read_text())["status"] == "running"
    assert medtrain("resume", run, "data.num_workers=2") == 0
    a, b = _weights(straight, 8), _weights(run, 8)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    for name in ("metrics.csv", "metrics.jsonl"):
        assert (straight / name).read_bytes() == (run / name).read_bytes(), name
    assert (straight / "evaluation" / "cases.csv").read_bytes() == (run / "evaluation" / "cases.csv").read_bytes()


def test_resume_without_a_checkpoint_starts_again_and_says_so(
    trained: tuple[Path, list[str]], tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    straight, _ = trained
    run = tmp_path / "early"
    shutil.copytree(straight, run)
    shutil.rmtree(run / "checkpoints")
    assert medtrain("resume", run) == 0
    assert "starts again at step 0 with the same seed" in capsys.readouterr().err
    a, b = _weights(straight, 8), _weights(run, 8)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (straight / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_a_finished_run_goes_on_with_a_longer_limit(
    trained: tuple[Path, list[str]], tmp_path: Path, medtrain: Command
) -> None:
    import shutil

    run = tmp_path / "longer"
    shutil.copytree(trained[0], run)
    assert medtrain("resume", run, "trainer.max_steps=10") == 0
    assert max(row["step"] for row in read_rows(run)) == 10
    # the new limit is the run's from now on, and a limit of another kind replaces it
    assert "max_steps: 10" in (run / "config.yaml").read_text()
    assert medtrain("resume", run, "trainer.max_epochs=12") == 0
    assert max(row["step"] for row in read_rows(run)) == 12  # two batches an epoch, two to a step
    assert medtrain("resume", run, "trainer.max_steps=11") == 1  # behind it: said, not passed over in silence
    assert json.loads((run / "status.json").read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.dropout=0.5", "model.dropout: was 0.2 when the run began and cannot become 0.5"),
        ("data.batch_size=3", "data.batch_size: was 2 when the run began and cannot become 3"),
        ("optimizer.lr=1", "optimizer.lr: was 0.003 when the run began and cannot become 1.0"),
        ("seed=5", "seed: was 0 when the run began and cannot become 5"),
    ],
)
def test_resume_refuses_what_would_learn_something_else(
    trained: tuple[Path, list[str]],
    medtrain: Command,
    capsys: pytest.CaptureFixture[str],
    override: str,
    expected: str,
) -> None:
    assert medtrain("resume", trained[0], override) == 2
    assert expected in capsys.readouterr().err


def test_resume_refuses_changed_data(
    trained: tuple[Path, list[str]], broken: Path, tmp_path: Path, medtrain: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    path = sorted((broken / "imagesTr").glob("*.nii.gz"))[0]
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(1), image.affine, image.header), path)
    assert medtrain("resume", run, f"data.root={broken}", "trainer.max_steps=9") == 1
    error = capsys.readouterr().err
    assert "the data changed since the run began" in error
    assert path.name.split(".")[0] in error


@pytest.mark.parametrize("override", ["data.fold=1", "optimizer.lr=3", "model.dropout=0", "trainer.precision=bf16"])
def test_evaluate_refuses_what_has_no_effect_or_judges_other_cases(
    trained: tuple[Path, list[str]], medtrain: Command, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    assert medtrain("evaluate", trained[0], override) == 2
    assert override.split("=")[0] in capsys.readouterr().err


def test_evaluate_judges_the_cases_held_out_then_though_the_folder_has_grown(
    trained: tuple[Path, list[str]], broken: Path, tmp_path: Path, medtrain: Command
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    before = [line.split(",")[0] for line in (run / "evaluation" / "cases.csv").read_text().splitlines()]
    for kind in ("imagesTr", "labelsTr"):
        for index in range(3):
            shutil.copy(sorted((broken / kind).glob("*.nii.gz"))[index], broken / kind / f"aaa_{index}.nii.gz")
    description = json.loads((broken / "dataset.json").read_text())
    description["training"] += [
        {"image": f"./imagesTr/aaa_{i}.nii.gz", "label": f"./labelsTr/aaa_{i}.nii.gz"} for i in range(3)
    ]
    (broken / "dataset.json").write_text(json.dumps(description))
    assert medtrain("evaluate", run, f"data.root={broken}") == 0
    after = [line.split(",")[0] for line in (run / "evaluation" / "cases.csv").read_text().splitlines()]
    assert after == before


def test_evaluate_agrees_with_the_final_evaluation(trained: tuple[Path, list[str]], medtrain: Command) -> None:
    run, _ = trained
    before = (run / "evaluation" / "cases.csv").read_bytes()
    assert medtrain("evaluate", run, "--device", "cpu") == 0
    after = (run / "evaluation" / "cases.csv").read_bytes()
    header, *rows = before.decode().splitlines()
    again = after.decode().splitlines()
    assert again[0] == header
    texts = sum("/" not in column for column in header.split(","))  # which case of which patient
    for a, b in zip(rows, again[1:], strict=True):
        first, second = a.split(","), b.split(",")
        assert first[:texts] == second[:texts]
        np.testing.assert_allclose(
            # the command uses every core, the run was told to use one: sums differ in their last digits
            np.array(first[texts:], dtype=float),
            np.array(second[texts:], dtype=float),
            rtol=1e-3,
            atol=1e-3,
            equal_nan=True,
        )


def test_predict_writes_the_scans_geometry_and_goes_past_a_broken_scan(
    trained: tuple[Path, list[str]], phantom: Path, tmp_path: Path, medtrain: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import shutil

    scans, out = tmp_path / "scans", tmp_path / "out"
    shutil.copytree(phantom / "imagesTs", scans)
    good = sorted(scans.glob("*.nii.gz"))
    (scans / "broken.nii.gz").write_bytes(good[0].read_bytes()[:2000])
    assert medtrain("predict", trained[0], scans, out) == 1
    assert "broken.nii.gz" in capsys.readouterr().err
    written = sorted(out.glob("*.nii.gz"))
    assert [p.name for p in written] == [p.name for p in good]
    for path, source in zip(written, good, strict=True):
        label, scan = nib.load(path), nib.load(source)
        assert label.shape == scan.shape
        np.testing.assert_array_equal(label.affine, scan.affine)
        assert label.get_data_dtype() == np.uint8
        assert set(np.unique(np.asarray(label.dataobj))) <= {0, 1, 2}
    (scans / "broken.nii.gz").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in written}
    assert medtrain("predict", trained[0], scans, out) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == stamps


def test_export_passes_its_parity_check(trained: tuple[Path, list[str]], tmp_path: Path, medtrain: Command) -> None:
    out = tmp_path / "export"
    assert medtrain("export", trained[0], "--format", "torchscript", "--out", out) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    files = [path for path in out.iterdir() if path.name != "manifest.json"]
    assert len(files) == 1
    assert manifest


def test_sigterm_leaves_a_checkpoint_and_exit_code_75(
    trained: tuple[Path, list[str]], tmp_path: Path, medtrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medtrain.engine.loop import Engine

    straight, words = trained
    original = Engine.train_step

    def train_step(self: Engine, batches: object) -> None:
        original(self, batches)  # type: ignore[arg-type]
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Engine, "train_step", train_step)
    run = tmp_path / "stopped"
    assert medtrain("train", *words, f"run.dir={run}") == 75
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["step"]) == ("stopped", 5)
    monkeypatch.setattr(Engine, "train_step", original)
    assert medtrain("resume", run) == 0
    a, b = _weights(straight, 8), _weights(run, 8)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (straight / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_a_time_limit_ends_the_schedule(
    common: list[str], tmp_path: Path, medtrain: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is one whose every reading is 20 ms after the last, so that no machine is too slow."""
    run = tmp_path / "timed"
    readings = itertools.count(start=time.monotonic(), step=0.02)  # the command has read the real one before
    ticking = SimpleNamespace(**dict.fromkeys(("monotonic", "perf_counter"), lambda: next(readings)))
    for module in (clock, loop, launch):
        monkeypatch.setattr(module, "time", ticking)
    words = ["trainer.max_time=3s", "trainer.log_every=1step", "trainer.eval_every=100%", "trainer.sanity_check=false"]
    assert medtrain("train", *common, *words, f"run.dir={run}") == 0
    rows = read_rows(run)
    assert rows[-1]["train/lr"] < 0.5 * rows[0]["train/lr"]
    assert "val/dice" in rows[-1]


def test_a_run_on_every_case_has_no_evaluation_and_predicts(
    common: list[str], phantom: Path, tmp_path: Path, medtrain: Command
) -> None:
    run = tmp_path / "all"
    assert medtrain("train", *common, "data.fold=null", "trainer.max_steps=2", f"run.dir={run}") == 0
    assert not any(key.startswith("val/") for row in read_rows(run) for key in row)
    assert medtrain("predict", run, phantom / "imagesTs", tmp_path / "out", "--no-mirror") == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_trains_on_slices(common: list[str], phantom: Path, tmp_path: Path, medtrain: Command) -> None:
    run = tmp_path / "flat"
    words = [word for word in common if not word.startswith("data.patch_size")]
    words += ["data.spatial_dims=2", "data.patch_size=[32,32]", "trainer.max_steps=2", f"run.dir={run}"]
    assert medtrain("train", *words) == 0
    assert "val/dice" in read_rows(run)[-1]
    assert json.loads((run / "plan.json").read_text())["spatial_dims"] == 2
    assert medtrain("predict", run, phantom / "imagesTs", tmp_path / "out") == 0


def test_two_processes_train_and_resume(common: list[str], tmp_path: Path, medtrain: Command) -> None:
    run = tmp_path / "two"
    words = [*common, "trainer.max_steps=3", "trainer.eval_every=1step", "trainer.final_evaluation=true"]
    command = [sys.executable, "-m", "medtrain", "train", "--nproc", "2", *words, f"run.dir={run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    one = tmp_path / "one"
    assert medtrain("train", *words, f"run.dir={one}") == 0
    # the same batches in two halves: equal up to the order of sums
    assert [row["val/dice"] for row in read_rows(run)] == pytest.approx(
        [row["val/dice"] for row in read_rows(one)], abs=1e-3
    )
    assert medtrain("resume", run, "trainer.max_steps=4") == 0


def test_two_processes_stop_in_order_when_their_launcher_is_killed(
    common: list[str], tmp_path: Path, medtrain: Command
) -> None:
    """As on a signal: a checkpoint of the step, and the run can be continued."""
    (tmp_path / "killer.py").write_text(
        "import os, signal\n"
        "from medtrain.engine.loop import Engine\n"
        "original = Engine.train_step\n"
        "def train_step(self, batches):\n"
        "    original(self, batches)\n"
        "    if self.step == 2 and self.dist.is_main:\n"
        "        os.kill(os.getppid(), signal.SIGKILL)\n"
        "Engine.train_step = train_step\n"
    )
    run = tmp_path / "run"
    words = [*common, "trainer.max_steps=500", "trainer.eval_every=500step", "trainer.sanity_check=false"]
    command = [sys.executable, "-m", "medtrain", "train", "--nproc", "2", "--import", "killer", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    # the output ends when every process that could write to it has
    done = subprocess.run(
        [*command, f"run.dir={run}"], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["message"]) == ("stopped", "received SIGTERM"), done.stderr
    assert 2 <= status["step"] < 500
    assert (run / "checkpoints" / f"step_{status['step']:08d}" / "model.safetensors").exists()
    assert medtrain("resume", run, f"trainer.max_steps={status['step'] + 1}") == 0


@pytest.mark.slow
def test_compiles(common: list[str], tmp_path: Path, medtrain: Command) -> None:
    run = tmp_path / "compiled"
    words = ["trainer.compile=true", "trainer.max_steps=2", "model.channels=[4,8]", "trainer.eval_every=100%"]
    assert medtrain("train", *common, *words, f"run.dir={run}") == 0
    names = load_file(run / "checkpoints" / "step_00000002" / "model.safetensors")
    assert not any("_orig_mod" in name for name in names)


def test_a_finished_run_is_left_alone_unless_asked_for_more(
    trained: tuple[Path, list[str]], tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    run = tmp_path / "done"
    shutil.copytree(trained[0], run)
    before = {path: path.read_bytes() for path in run.rglob("*.csv")}
    assert medtrain("resume", run) == 0
    assert "the run is done, at step 8" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*.csv")} == before
    assert json.loads((run / "status.json").read_text())["status"] == "done"


def test_evaluate_draws_a_case_and_keeps_the_final_evaluation(
    trained: tuple[Path, list[str]], tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    final = (run / "evaluation" / "cases.csv").read_bytes()
    train_case = json.loads((run / "splits.json").read_text())[0]["train"][0]
    assert medtrain("evaluate", run, "--case", train_case) == 0
    said = capsys.readouterr().err
    assert train_case in said
    assert "interval" not in said  # of one case there is none
    assert "worst cases" not in said
    out = run / "evaluation" / f"case_{train_case}_step_00000008"
    assert (out / f"{train_case}.png").stat().st_size > 0
    assert medtrain("evaluate", run, "--part", "train") == 0
    assert "worst cases: " in capsys.readouterr().err
    assert (run / "evaluation" / "train_step_00000008" / "worst.png").stat().st_size > 0
    assert medtrain("evaluate", run, "inference.overlap=0.25") == 0
    assert (run / "evaluation" / "cases.csv").read_bytes() == final
    assert medtrain("evaluate", run, "--case", "phantom_0O1") == 2
    assert "did you mean phantom_0" in capsys.readouterr().err
