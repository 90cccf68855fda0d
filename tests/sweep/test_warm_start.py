"""Warm starts: what an earlier sweep or a list of points gives to a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from medtrain.errors import ConfigError, UsageError
from medtrain.sweep.result import TrialResult
from medtrain.sweep.storage import open_storage
from medtrain.sweep.study import SweepStudy
from tests.sweep.searches import (
    BATCH,
    DICE,
    DROPOUT,
    GAMMA,
    LOSS,
    LR,
    MIXED,
    NORM,
    NUMBERS,
    SIZE,
    complete,
    create_quick,
    define,
    failed,
    quality,
    search,
)

DEFAULT = {"optimizer.lr": 1e-2, "model.dropout": 0.0}


def earlier_sweep(
    folder: Path, count: int = 8, *, storage: str | None = None, name: str | None = None, **options: Any
) -> SweepStudy:
    """A sweep in its folder: `count` complete trials, one pruned, one that diverged, one that failed, one running."""
    folder.mkdir()
    sections = {"sweep": {"storage": storage, "study": name}}
    (folder / "config.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")
    options = {"dimensions": NUMBERS, "default": DEFAULT, "n_trials": count + 9, "folder": folder, **options}
    study = SweepStudy.create(
        open_storage(storage or str(folder / "journal.log")), name or folder.name, define(**options)
    )
    search(study, most=count)
    pruned = study.next()
    study.report(pruned, 30, 0.3)
    study.finish(pruned, TrialResult(state="pruned", message="given up"))
    study.finish(study.next(), failed("nonfinite"))
    study.finish(study.next(), failed("error"))
    study.next()
    return study


def begun_with(definition: Any) -> tuple[SweepStudy, list[Any]]:
    """A study that was just made, and its waiting points."""
    study = create_quick(definition)
    waiting = [trial for trial in study.study.get_trials() if trial.state == TrialState.WAITING]
    return study, [trial.system_attrs["fixed_params"] for trial in waiting]


def imported(study: SweepStudy) -> list[Any]:
    return [trial for trial in study.study.get_trials() if "imported_from" in trial.user_attrs]


class TestSameSweep:
    """Trials of the same configuration on the same data are taken over."""

    def test_finished_trials_are_there_and_do_not_count(self, tmp_path: Path) -> None:
        earlier = earlier_sweep(tmp_path / "one")
        definition = define(default=DEFAULT, n_trials=6, warm_start=[str(tmp_path / "one")], sampler="tpe")
        study, waiting = begun_with(definition)
        taken = imported(study)
        assert waiting == []  # the configuration as it is was tried there
        assert [trial.state for trial in taken] == [TrialState.COMPLETE] * 8 + [TrialState.PRUNED] * 2
        assert [trial.params for trial in taken] == [trial.params for trial in earlier.trials()[:10]]
        assert [trial.values for trial in taken] == [trial.values for trial in earlier.trials()[:10]]
        assert taken[8].intermediate_values == {30: 0.3}
        assert taken[0].user_attrs["imported_from"] == str(tmp_path / "one")
        assert taken[0].user_attrs["metrics"] == earlier.trials()[0].user_attrs["metrics"]
        assert taken[9].user_attrs["failure"] == "nonfinite"
        assert study.counts().finished == 0
        tried = search(study)
        assert len(tried) == 6
        assert not {str(point) for point in tried} & {str(trial.params) for trial in taken}
        assert all(trial.number >= 10 for trial in study.best(99))

    def test_constraints_are_judged_anew(self, tmp_path: Path) -> None:
        earlier_sweep(tmp_path / "one")
        limit = 1e6 * (1 + 0.8)
        study, _ = begun_with(define(warm_start=[str(tmp_path / "one")], constraints=[f"parameters <= {limit}"]))
        complete_ones = [trial for trial in imported(study) if trial.state == TrialState.COMPLETE]
        assert complete_ones
        for trial in complete_ones:
            violation = trial.constraints["parameters <= 1.8e+06"]
            assert violation == pytest.approx(1e6 * (1 + quality(trial.params)) - limit)

    def test_only_points_of_this_space_are_taken(self, tmp_path: Path) -> None:
        earlier_sweep(tmp_path / "one", dimensions=MIXED, default=None)
        narrow = (LR, LOSS, GAMMA, BATCH.__class__(key=BATCH.key, kind="int", low=4, high=6, step=2))
        study, _ = begun_with(define(narrow, warm_start=[str(tmp_path / "one")]))
        taken = imported(study)
        assert 0 < len(taken) < 10
        assert {trial.params["data.batch_size"] for trial in taken} <= {4, 6}

    def test_what_was_taken_over_is_passed_on(self, tmp_path: Path) -> None:
        earlier_sweep(tmp_path / "one")
        earlier_sweep(tmp_path / "two", warm_start=[str(tmp_path / "one")], seed=1)
        study, _ = begun_with(define(warm_start=[str(tmp_path / "two"), str(tmp_path / "one")]))
        taken = imported(study)
        assert len({str(trial.params) for trial in taken}) == len(taken) == 20
        assert {trial.user_attrs["imported_from"] for trial in taken} == {str(tmp_path / "one"), str(tmp_path / "two")}

    def test_a_grid_leaves_out_what_was_tried(self, tmp_path: Path) -> None:
        earlier_sweep(tmp_path / "one", count=2, dimensions=(LOSS, NORM), default=None, sampler="grid", n_trials=None)
        study, _ = begun_with(define((LOSS, NORM), sampler="grid", warm_start=[str(tmp_path / "one")]))
        tried = search(study)
        # two were complete there, one pruned and one diverged: the fifth and sixth of the grid are left
        assert tried == [{"loss": "focal", "model.norm": "batch"}, {"loss": "focal", "model.norm": "null"}]

    @pytest.mark.parametrize("storage", ["{folder}/other.db", "{folder}/named.log"])
    def test_its_study_may_be_anywhere(self, storage: str, tmp_path: Path) -> None:
        earlier_sweep(tmp_path / "one", storage=storage.format(folder=tmp_path), name="named")
        study, _ = begun_with(define(warm_start=[str(tmp_path / "one")]))
        assert len(imported(study)) == 10


class TestOtherSweep:
    """The best points of another configuration, other data or another objective are tried again."""

    @pytest.mark.parametrize(
        "other", [{"digest": "else"}, {"split_hash": "else"}, {"objectives": (DICE, SIZE)}, {"objectives": (SIZE,)}]
    )
    def test_the_best_five_are_tried_first(self, other: dict[str, Any], tmp_path: Path) -> None:
        earlier = earlier_sweep(tmp_path / "one")
        study, waiting = begun_with(define(default=DEFAULT, warm_start=[str(tmp_path / "one")], **other))
        assert imported(study) == []
        smallest = other.get("objectives") == (SIZE,)
        ranked = sorted(earlier.trials()[:8], key=lambda trial: quality(trial.params), reverse=not smallest)
        expected = [DEFAULT, *(trial.params for trial in ranked[:5] if trial.params != DEFAULT)]
        assert waiting == expected
        first = [study.next() for _ in expected]
        assert [point.params for point in first] == expected
        assert [point.origin for point in first] == ["default", *["warm_start"] * (len(expected) - 1)]

    def test_another_space_gets_what_fits_and_fills_in_the_rest(self, tmp_path: Path) -> None:
        earlier_sweep(tmp_path / "one", dimensions=(LR, BATCH), default=None)
        space = (LR, DROPOUT, LOSS)
        study, waiting = begun_with(
            define(space, default={**DEFAULT, "loss": "focal"}, try_default=False, warm_start=[str(tmp_path / "one")])
        )
        assert len(waiting) == 5
        assert all(point == {**point, "model.dropout": 0.0, "loss": "focal"} for point in waiting)
        assert all(list(point) == [dimension.key for dimension in space] for point in waiting)
        assert study.counts().waiting == 5

    def test_points_outside_the_space_are_left(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        earlier_sweep(tmp_path / "one", dimensions=(LR,), default=None)
        far = LR.__class__(key=LR.key, kind="float", low=10.0, high=20.0)
        _, waiting = begun_with(define((far,), digest="else", warm_start=[str(tmp_path / "one")]))
        assert waiting == []
        assert "no trial of" in caplog.text
        as_choice = LR.__class__(key=LR.key, kind="choice", choices=("1e-3", "1e-2"))
        assert begun_with(define((as_choice,), warm_start=[str(tmp_path / "one")]))[1] == []


class TestList:
    """Points in a YAML file."""

    def write(self, folder: Path, text: str) -> str:
        (folder / "points.yaml").write_text(text, encoding="utf-8")
        return str(folder / "points.yaml")

    def test_they_are_tried_after_the_default_in_their_order(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            """
            - {optimizer.lr: 1e-3, loss: focal, loss.gamma: 2, model.norm: null, data.batch_size: 4}
            - {optimizer.lr: 0.05, loss: dice_ce, model.norm: batch}
            - {optimizer.lr: 0.01, loss: dice_ce, model.norm: instance, data.batch_size: 2}
            """,
        )
        default = {"optimizer.lr": 0.01, "loss": "dice_ce", "model.norm": "instance", "data.batch_size": 2}
        study, waiting = begun_with(define((*MIXED, NORM), default=default, warm_start=[path], n_trials=3))
        focal = {"loss": "focal", "loss.gamma": 2.0, "model.norm": "null", "data.batch_size": 4}
        plain = {"loss": "dice_ce", "model.norm": "batch", "data.batch_size": 2}
        assert waiting == [default, {"optimizer.lr": 0.001, **focal}, {"optimizer.lr": 0.05, **plain}]
        tried = search(study)
        assert [dict(sorted(point.items())) for point in tried] == [dict(sorted(point.items())) for point in waiting]
        assert study.next() is None

    def test_what_they_do_not_say_is_drawn(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "- {loss: focal}")
        point = create_quick(define(MIXED, warm_start=[path])).next()
        assert point.params["loss"] == "focal"
        assert set(point.params) == {"optimizer.lr", "loss", "loss.gamma", "data.batch_size"}

    def test_choices_are_recognized_by_what_they_mean(self, tmp_path: Path) -> None:
        kinds = {"rate": ("1e-3", "0.01"), "flag": ("true", "false"), "width": ("[16,32]", "[32, 64]"), "n": ("1", "2")}
        space = [LOSS.__class__(key=key, kind="choice", choices=choices) for key, choices in kinds.items()]
        path = self.write(tmp_path, "- {rate: 0.001, flag: false, width: [32, 64], n: 2.0}")
        _, waiting = begun_with(define(space, warm_start=[path]))
        assert waiting == [{"rate": "1e-3", "flag": "false", "width": "[32, 64]", "n": "2"}]
        assert begun_with(define(space, warm_start=[self.write(tmp_path, "- {n: '1'}")]))[1] == [{"n": "1"}]

    def test_all_that_is_wrong_is_said_at_once(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            """
            - {optimizer.lrr: 1e-3}
            - {optimizer.lr: 7, loss: dice_ce, loss.gamma: 2}
            - {loss: tversky, data.batch_size: 3, optimizer.lr: true}
            - {data.batch_size: 2.5, optimizer.lr: fast}
            """,
        )
        with pytest.raises(ConfigError) as caught:
            create_quick(define(MIXED, warm_start=[path]))
        searched = "optimizer.lr, loss, loss.gamma, data.batch_size"
        lines = [(str(problem).replace(path, "FILE"), problem.hint) for problem in caught.value.problems]
        assert lines == [
            (f"optimizer.lrr: is not searched; searched are: {searched} (FILE, point 1)", "did you mean optimizer.lr?"),
            ("optimizer.lr: 7 is not between 0.0001 and 0.1 (FILE, point 2)", None),
            ("loss.gamma: exists only with loss=focal (FILE, point 2)", None),
            ("optimizer.lr: True is not between 0.0001 and 0.1 (FILE, point 3)", None),
            ("loss: 'tversky' is not one of dice_ce, focal (FILE, point 3)", None),
            ("data.batch_size: 3 is not a whole number between 2 and 9 in steps of 2 (FILE, point 3)", None),
            ("optimizer.lr: 'fast' is not between 0.0001 and 0.1 (FILE, point 4)", None),
            ("data.batch_size: 2.5 is not a whole number between 2 and 9 in steps of 2 (FILE, point 4)", None),
        ]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "there is no file or folder"),
            ("optimizer.lr: 1", "is no list of points"),
            ("- 1", "is no list of points"),
            ("", "is no list of points"),
            ("- {a: [", "is not YAML"),
        ],
    )
    def test_a_file_that_is_none(self, content: str | None, message: str, tmp_path: Path) -> None:
        path = tmp_path / "points.yaml"
        if content is not None:
            path.write_text(content, encoding="utf-8")
        storage = InMemoryStorage()
        with pytest.raises(UsageError, match=message):
            create_quick(define(warm_start=[str(path)]), storage)
        assert storage.get_all_studies() == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "is no folder of a sweep"),
        (lambda folder: (folder / "config.yaml").write_text("seed: 1", encoding="utf-8"), "is no folder of a sweep"),
        (lambda folder: (folder / "journal.log").unlink(), "it has no journal.log"),
        (lambda folder: (folder / "journal.log").write_text("", encoding="utf-8"), "is no longer in its storage"),
    ],
)
def test_a_folder_that_is_no_sweeps_is_named(spoil: Any, message: str, tmp_path: Path) -> None:
    earlier_sweep(tmp_path / "one")
    spoil(tmp_path / "one")
    with pytest.raises(UsageError, match=message):
        create_quick(define(warm_start=[str(tmp_path / "one")]))


def test_a_sweep_that_never_began_is_named(tmp_path: Path) -> None:
    study = earlier_sweep(tmp_path / "one")
    study._storage.set_study_user_attr(study._id, "ready", False)
    with pytest.raises(UsageError, match="has never begun"):
        create_quick(define(warm_start=[str(tmp_path / "one")]))


def test_duplicates_are_not_passed_on(tmp_path: Path) -> None:
    study = earlier_sweep(tmp_path / "one")
    study.finish(study.next(), complete(val__dice=0.99))
    extra = study.trials()[-1]
    assert len(imported(begun_with(define(warm_start=[str(tmp_path / "one")]))[0])) == 11
    study._storage.create_new_trial(study._id, extra)  # the same point once more
    assert len(imported(begun_with(define(warm_start=[str(tmp_path / "one")]))[0])) == 11
