from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from medtrain.sweep.folder import SweepFolder
from medtrain.sweep.report.write import write_report
from medtrain.sweep.rerun import best_configuration, run_reruns
from medtrain.sweep.study import SweepStudy
from tests.sweep import searches


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder.create(experiment="liver", path=tmp_path / "s")


def _finish(study: SweepStudy, *scores: dict[str, float]) -> list[dict[str, object]]:
    """Trials with these metrics; their points."""
    points = []
    for metrics in scores:
        assignment = study.next()
        assert assignment is not None
        points.append(dict(assignment.params))
        study.finish(assignment, searches.complete(**metrics))
    return points


def _rerun(folder: SweepFolder, trial: int, seed: int, dice: float) -> None:
    place = folder.reruns / f"{trial:04d}-seed{seed}"
    place.mkdir(parents=True)
    result = {"trial": trial, "seed": seed, "state": "complete", "metrics": {"val/dice": dice}}
    (place / "result.json").write_text(json.dumps(result))


def test_of_several_objectives_the_first_decides_as_in_the_report(folder: SweepFolder) -> None:
    study = searches.create_quick(
        searches.define(folder=folder.path, objectives=(searches.DICE, searches.SIZE), n_trials=4)
    )
    # the smallest comes first, the most accurate third, and the last is beaten by all
    points = _finish(
        study,
        {"val__dice": 0.5, "parameters": 1.0},
        {"val__dice": 0.7, "parameters": 2.0},
        {"val__dice": 0.9, "parameters": 3.0},
        {"val__dice": 0.4, "parameters": 9.0},
    )
    found = best_configuration(folder, study)
    assert found is not None
    assert found[0] == points[2]
    assert found[1].endswith(": trial 2, val/dice 0.9, parameters 3, the best in val/dice of 3 on the Pareto front.")
    write_report(folder.path, study)
    assert "Trial 2, the best of the Pareto front in val/dice" in (folder.path / "report.html").read_text()


def test_the_best_trained_again_wins(folder: SweepFolder) -> None:
    study = searches.create_quick(searches.define(folder=folder.path, n_trials=2))
    assert best_configuration(folder, study) is None
    points = _finish(study, {"val__dice": 0.8}, {"val__dice": 0.9})
    assert best_configuration(folder, study) == (
        points[1],
        f"The winner of the sweep {folder.name}: trial 1, val/dice 0.9.",
    )
    for seed, first, second in ((1, 0.84, 0.70), (2, 0.86, 0.72)):
        _rerun(folder, 0, seed, first)
        _rerun(folder, 1, seed, second)
    found = best_configuration(folder, study)
    assert found is not None
    assert found[0] == points[0]
    # the standard deviation of a sample: 0.02 / sqrt(2)
    assert found[1].endswith(": trial 0, val/dice 0.85 +- 0.01414 over 2 more runs.")


def test_the_time_limit_of_a_sweep_holds_for_its_reruns(tmp_path: Path) -> None:
    definition = SimpleNamespace(sweep={"rerun_best": 1, "rerun_seeds": 2, "rerun_folds": [], "folds": []})
    study = SimpleNamespace(
        definition=definition, best=lambda k: [SimpleNamespace(number=0, params={"optimizer.lr": 1e-3})]
    )
    asked: list[str] = []
    pool = SimpleNamespace(
        has_room=True, stop=lambda: asked.append("stop"), start=lambda *a, **k: asked.append("start")
    )
    signals = SimpleNamespace(received=None)
    reason = run_reruns(SweepFolder(tmp_path), study, pool, signals, seed=0, deadline=0.0)  # type: ignore[arg-type]
    assert reason == "timeout"
    assert asked == ["stop"]
