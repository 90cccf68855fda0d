"""What follows from the data and the machine, and what a user's value keeps from following."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from medtrain.config.compose import load_config
from medtrain.engine.build import changed_since, check_evaluation, check_prediction, continuation, fixed_part
from medtrain.engine.derive import DEFAULT_STEPS, Derivation, absolute_paths, derive
from medtrain.errors import ConfigError
from medtrain.registry import build


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("derive")
    build("data", {"name": "phantom", "root": str(folder / "phantom"), "num_cases": 5, "num_test_cases": 0}).discover()
    return [
        "data=msd", f"data.root={folder / 'phantom'}", f"data.store={folder / 'store'}", "trainer.device=cpu",
        "trainer.precision=fp32",
    ]  # fmt: skip


def _derive(*words: str) -> Derivation:
    return derive(load_config(words).tree)


def _values(derivation: Derivation) -> dict[str, Any]:
    return {value.key: value.value for value in derivation.values}


def test_fills_in_every_value_that_was_left_out(words: list[str]) -> None:
    derivation = _derive(*words)
    values = _values(derivation)
    plan, config = derivation.plan, derivation.config
    assert config["data"]["patch_size"] == plan.patch_size == values["data.patch_size"]
    assert config["model"]["channels"] == plan.channels
    assert config["model"]["strides"] == plan.strides
    assert config["data"]["batch_size"] == plan.batch_size
    assert config["trainer"]["max_steps"] == DEFAULT_STEPS["cpu"]
    assert (plan.in_channels, plan.num_classes, plan.class_names) == (1, 3, ("background", "liver", "cancer"))
    assert all(value.reason for value in derivation.values)
    assert len(derivation.found.split["train"]) == 4
    assert len(derivation.found.split["val"]) == 1


def test_a_value_of_the_user_stays(words: list[str]) -> None:
    derivation = _derive(*words, "data.patch_size=[16,32,32]", "model.channels=[4,8,16]", "trainer.max_epochs=3")
    values = _values(derivation)
    assert derivation.plan.patch_size == (16, 32, 32)
    assert derivation.plan.channels == (4, 8, 16)
    assert len(derivation.plan.strides) == 3
    assert not {"data.patch_size", "model.channels", "trainer.max_steps"} & values.keys()
    assert derivation.config["trainer"]["max_steps"] is None


def test_augmentation_follows_from_the_machine_and_mirroring_from_the_augmentation(words: list[str]) -> None:
    derivation = _derive(*words)
    assert derivation.config["augment"]["name"] == "light"
    assert derivation.config["inference"]["mirror_axes"] == (2,)  # left to right
    assert _values(derivation)["augment"] == "light"
    assert _derive(*words, "augment=nnunet").config["inference"]["mirror_axes"] == (0, 1, 2)
    assert _derive(*words, "augment=none").config["inference"]["mirror_axes"] == ()
    assert _derive(*words, "augment=nnunet", "augment.mirror_p=0").config["inference"]["mirror_axes"] == ()


def test_deriving_again_changes_nothing(words: list[str]) -> None:
    first = _derive(*words)
    again = derive(first.config)
    assert again.config == first.config
    assert again.plan.channels == first.plan.channels
    assert again.plan.patch_size == first.plan.patch_size


def test_a_checkpoint_knows_what_is_learned(words: list[str], tmp_path: Path) -> None:
    config = _derive(*words).config
    longer = load_config([*words, "trainer.max_steps=7", f"data.store={tmp_path}", "run.note=x", "logger=[]"]).tree
    other = load_config([*words, "optimizer.lr=0.5", "model.dropout=0.3"]).tree
    base = load_config(words).tree
    assert changed_since(fixed_part(base), longer) == []
    assert [problem.where for problem in changed_since(fixed_part(base), other)] == ["model.dropout", "optimizer.lr"]
    # derived values are part of what is learned
    assert "model.channels" in [problem.where for problem in changed_since(fixed_part(base), config)]
    # a setting that came with a later version
    older = {**fixed_part(base), "model": {k: v for k, v in fixed_part(base)["model"].items() if k != "dropout"}}
    assert [problem.where for problem in changed_since(older, other)] == ["optimizer.lr"]
    joined = load_config([*words, "data.merge_labels={liver: [liver, cancer]}"]).tree
    assert [problem.where for problem in changed_since(fixed_part(base), joined)] == ["data.merge_labels"]
    assert continuation(base, longer)["trainer"]["max_steps"] == 7
    with pytest.raises(ConfigError) as caught:
        continuation(base, other)
    assert [problem.where for problem in caught.value.problems] == ["model.dropout", "optimizer.lr"]


def test_a_table_may_have_moved_and_the_report_may_ask_more() -> None:
    table = ["data=csv", "data.images=file", "data.targets=grade"]
    base = load_config([*table, "data.path=labels.csv"]).tree
    moved = load_config([*table, "data.path=there/labels.csv", "data.root=there"]).tree
    assert changed_since(fixed_part(base), moved) == []
    assert continuation(base, moved)["data"]["path"].endswith("there/labels.csv")
    check_evaluation(base, moved)
    check_evaluation(base, load_config([*table, "data.path=labels.csv", "task.report.subgroups=[sex]"]).tree)
    with pytest.raises(ConfigError) as caught:
        check_evaluation(base, load_config([*table, "data.path=labels.csv", "task.monitor=auroc"]).tree)
    assert [problem.where for problem in caught.value.problems] == ["task.monitor"]


def test_predicting_takes_what_has_an_effect_on_a_prediction(words: list[str]) -> None:
    base = load_config(words).tree
    free = ["inference.overlap=0.75", "data.cascade_from=first", "data.root=elsewhere"]
    check_prediction(base, load_config([*words, *free]).tree)
    changed = load_config([*words, "task.nsd_tolerance_mm=7", "data.store=there", "task.report.resamples=0"]).tree
    with pytest.raises(ConfigError, match=r"only inference\.\*, data\.root, data\.cascade_from and model\.w") as caught:
        check_prediction(base, changed)
    expected = ["data.store", "task.nsd_tolerance_mm", "task.report.resamples"]
    assert [problem.where for problem in caught.value.problems] == expected


def test_a_table_of_subgroups_holds_everywhere_and_may_change(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = load_config([*words, "task.report.metadata=cases.csv", "task.report.subgroups=[site]"]).tree
    base = absolute_paths(given)
    assert base["task"]["report"]["metadata"] == str(tmp_path / "cases.csv")
    assert given["task"]["report"]["metadata"] == "cases.csv"
    moved = load_config([*words, "task.report.metadata=there/cases.csv"]).tree
    assert changed_since(fixed_part(base), moved) == []
    assert continuation(base, moved)["task"]["report"]["metadata"] == str(tmp_path / "there" / "cases.csv")
    with pytest.raises(ConfigError, match=r"task\.monitor"):
        continuation(base, load_config([*words, "task.monitor=nsd"]).tree)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {"max_time": "10min"}),
        (["trainer.max_steps=7"], {"max_steps": 7}),
        (["trainer.max_epochs=2"], {"max_epochs": 2}),
    ],
)
def test_images_on_a_cpu_train_for_ten_minutes(tmp_path: Path, given: list[str], expected: dict[str, object]) -> None:
    words = ["data=phantom_images", f"data.root={tmp_path / 'phantom'}", "trainer.device=cpu", *given]
    trainer = _derive(*words, f"data.store={tmp_path / 'store'}").config["trainer"]
    limits = {key: trainer[key] for key in ("max_steps", "max_epochs", "max_time") if trainer[key] is not None}
    assert limits == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["trainer.max_steps=6"], "100%"),
        (["trainer.max_steps=100000"], "10%"),
        (["trainer.max_time=1h"], "10%"),
        (["trainer.max_steps=6", "trainer.eval_every=2step"], "2step"),
    ],
)
def test_evaluations_are_fewer_where_they_cost_more_than_a_quarter_of_training(
    words: list[str], given: list[str], expected: str
) -> None:
    derivation = _derive(*words, "data.patch_size=[16,16,16]", "data.batch_size=2", *given)
    assert derivation.config["trainer"]["eval_every"] == expected
    plan = derivation.plan
    sides = [1 + math.ceil((size - 16) / 8) for size in plan.median_shape]
    cost = plan.case_cost({"overlap": 0.5})
    assert cost == pytest.approx(math.prod(sides) / 6)
    # one validation case: a quarter of 16 costs' steps pays for four evaluations
    four = _derive(
        *words, "data.patch_size=[16,16,16]", "data.batch_size=2", f"trainer.max_steps={math.ceil(16 * cost)}"
    )
    assert four.config["trainer"]["eval_every"] == "25%"
