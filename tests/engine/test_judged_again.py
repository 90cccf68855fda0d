"""A run that is done, and is asked for more than its final evaluation has left."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from medtrain.config.compose import load_config
from medtrain.config.saved import load_saved
from medtrain.engine.build import continuation
from medtrain.engine.launch import EXIT_DONE, EXIT_STOPPED, Outcome, resume_run, start_run
from medtrain.engine.loop import Engine, EvaluationInterruptedError
from medtrain.engine.precision import choose_precision
from medtrain.errors import UsageError
from medtrain.registry import build


def _resume(run: Path, *overrides: str) -> Outcome:
    before = load_saved(run)
    return resume_run(run, continuation(before, load_saved(run, overrides)), before=before)


def _status(run: Path) -> dict[str, Any]:
    status: dict[str, Any] = json.loads((run / "status.json").read_text())
    return {key: status[key] for key in ("status", "step", "message", "best")}


def test_only_the_final_evaluation_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = tmp_path / "phantom", tmp_path / "run"
    build("data", {"name": "phantom", "root": str(root), "num_cases": 4, "num_test_cases": 0}).discover()
    words = [
        "data=msd", f"data.root={root}", f"data.store={tmp_path / 'store'}", "data.num_folds=2",
        "data.patch_size=[8,16,16]", "data.spacing=[9,9,9]", "data.batch_size=2", "model.channels=[4,8]",
        "trainer.precision=fp32", "trainer.num_threads=1", "trainer.eval_every=1step", "trainer.max_steps=1",
        "trainer.sanity_check=false", "trainer.device=cpu", "task.surface_metrics=never", "logger=[]", "callbacks=[]",
        "inference.mirror=false", "task.report.resamples=9",
    ]  # fmt: skip
    start_run(load_config([*words, f"run.dir={run}"]).tree, overrides=())
    before, maps = _status(run), run / "evaluation" / "predictions"
    assert not maps.exists()

    with monkeypatch.context() as patch:

        def stop(*_: Any, **__: Any) -> None:
            raise EvaluationInterruptedError

        patch.setattr(Engine, "evaluate", stop)
        assert _resume(run, "trainer.save_predictions=true").exit_code == EXIT_STOPPED
    assert _status(run) == before
    assert _resume(run).exit_code == EXIT_DONE  # it knows what was asked
    held_out = json.loads((run / "splits.json").read_text())[0]["val"]
    assert sorted(path.name for path in maps.iterdir()) == sorted(f"{case}.nii.gz" for case in held_out)
    assert (_status(run)["status"], _status(run)["step"]) == ("done", 1)
    assert [path.name for path in (run / "checkpoints").glob("step_*")] == ["step_00000001"]

    stamp = (run / "evaluation" / "cases.csv").stat().st_mtime_ns
    assert _resume(run, "inference.overlap=0.75").exit_code == EXIT_DONE
    assert "what was given changes nothing any more" in capsys.readouterr().err
    assert (run / "evaluation" / "cases.csv").stat().st_mtime_ns == stamp
    assert load_saved(run)["inference"]["overlap"] == 0.5

    with pytest.raises(UsageError, match=r"task\.report\.metadata: there is no file"):
        _resume(run, f"task.report.metadata={tmp_path / 'table.csv'}", "task.report.subgroups=[site]")
    assert _status(run)["status"] == "done"
    assert load_saved(run)["task"]["report"]["subgroups"] == ()
    (tmp_path / "table.csv").write_text("case_id,site\n" + "".join(f"{case},north\n" for case in held_out))
    monkeypatch.chdir(tmp_path)
    _resume(run, "task.report.metadata=table.csv", "task.report.subgroups=[site]", "trainer.precision=auto")
    # what is kept is what was computed in
    assert load_saved(run)["trainer"]["precision"] == choose_precision("auto", torch.device("cpu"))[0]
    with (run / "evaluation" / "subgroups.csv").open(newline="") as file:
        assert {row["subgroup"] for row in csv.DictReader(file)} == {"all", "north"}
