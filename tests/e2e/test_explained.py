"""Pictures of what a model saw, telling it where to look, and subgroups by metadata, through the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medtrain.data.sources.phantom_images import PhantomImages
from tests.e2e.conftest import read_rows
from tests.e2e.test_images import QUICK

Command = Callable[..., int]

CNN = ["model=cnn", "model.channels=[4,8]"]
SHORT = [*QUICK, "callbacks=[]", "trainer.max_steps=2", "trainer.eval_every=2step", "task.report.resamples=0"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explained")


def words(store: Path, data: str, *more: str) -> list[str]:
    return [f"data={data}", f"data.root={store / data}", f"data.store={store / 'store'}", *SHORT, *more]


def images(store: Path, *more: str) -> list[str]:
    return words(store, "phantom_images", "data.num_samples=40", "data.phantom_size=16", "data.annotated=1.0", *more)


def test_a_model_is_told_where_to_look_and_shows_where_it_looks(store: Path, tmp_path: Path, medtrain: Command) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    more = ["task.attention.mask=kl", "task.report.explained=1", "logger=[csv,jsonl,tensorboard]", f"run.dir={run}"]
    assert medtrain("train", *images(store, *CNN), *more) == 0
    assert all(row["train/loss/attention_mask"] > 0 for row in read_rows(run) if "train/loss/main" in row)
    assert any("train/loss/attention_mask" in row for row in read_rows(run))
    assert (run / "evaluation" / "explained.png").stat().st_size > 1000
    assert "(evaluation/explained.png)" in (run / "report.md").read_text()
    events = EventAccumulator(str(next(run.rglob("events.out.*")).parent))
    events.Reload()
    assert {"evaluation/explained", "evaluation/confusion"} <= set(events.Tags()["images"])
    case = json.loads((run / "splits.json").read_text())["val"][0]
    assert medtrain("evaluate", run, "--case", case) == 0
    (found,) = (run / "evaluation").glob(f"case_*_step_*/{case.replace('/', '_')}_explained.png")
    assert found.stat().st_size > 500
    assert medtrain("evaluate", run, "--part", "train", "task.report.explain=none") == 0
    (folder,) = (run / "evaluation").glob("train_step_*")
    assert (folder / "confusion.png").exists()
    assert not (folder / "explained.png").exists()


@pytest.mark.parametrize(
    ("data", "more", "said", "folder"),
    [
        ("phantom_grades", [*CNN, "task.attention.mask=kl"], "compares with masks, and the data have none", False),
        ("phantom_views", ["model.arch=cnn", "task.attention.mask=kl"], "attention", False),
        ("phantom_grades", [*CNN, "task.instance_entropy.weight=0.1"], "for bags and views", False),
        (
            "phantom_bags",
            ["model.arch=cnn", "model.aggregator=mean", "task.instance_entropy.weight=0.1"],
            "needs a model that returns `attention`",
            True,
        ),
        ("phantom_images", [*CNN, "task.aux_weights={nope: 1}"], "the model has no auxiliary heads", True),
        (
            "phantom_images",
            [*CNN, "task.attention.mask=kl", "task.attention.source=model"],
            "needs a model that returns `attention_map`",
            True,
        ),
        (
            "phantom_multimodal",
            ["model.arch=cnn", "task.attention={source: cam, mask: null, sharpness: entropy}"],
            "does not end in one linear layer",
            True,
        ),
    ],
)
def test_what_cannot_be_supervised_is_said_before_the_first_step(
    data: str,
    more: list[str],
    said: str,
    folder: bool,
    store: Path,
    tmp_path: Path,
    medtrain: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    small = [] if data == "phantom_images" else ["data.num_samples=12"]
    base = images(store, *more) if data == "phantom_images" else words(store, data, *small, *more)
    assert medtrain("train", *base, f"run.dir={run}") == 2
    assert said in capsys.readouterr().err
    assert run.exists() == folder
    if folder:
        status = json.loads((run / "status.json").read_text())
        assert (status["status"], status["step"]) == ("failed", 0)
        assert not list((run / "checkpoints").glob("step_*"))


def test_metadata_divide_the_metrics_and_boxes_supervise(store: Path, tmp_path: Path, medtrain: Command) -> None:
    run, root = tmp_path / "run", store / "phantom_images"
    PhantomImages(root=str(root), num_samples=40, phantom_size=16, annotated=1.0).generate()
    with (root / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        edges = (4, 4, 12, 12) if index % 2 else ("",) * 4
        row |= {"site": ("north", "south", "")[index % 3], **dict(zip(("l", "t", "r", "b"), map(str, edges)))}
    with (root / "more.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    more = [
        "data=csv", f"data.path={root / 'more.csv'}", "data.images=[image]", "data.targets=[finding]",
        "data.group=patient", "data.metadata=[site]", "data.annotation_box=[l,t,r,b]",
        f"data.store={store / 'store'}", *SHORT, *CNN, "task.attention.mask=dice", "task.report.subgroups=[site]",
        f"run.dir={run}",
    ]  # fmt: skip
    assert medtrain("train", *more) == 0
    assert any(row.get("train/loss/attention_mask", 0) > 0 for row in read_rows(run))
    written = {row["image"].removesuffix(".png"): row["site"] for row in rows}
    with (run / "evaluation" / "cases.csv").open(newline="") as file:
        cases = list(csv.DictReader(file))
    assert all(row["column/site"] == written[row["case_id"]] for row in cases)
    with (run / "evaluation" / "subgroups.csv").open(newline="") as file:
        groups = {(row["column"], row["subgroup"]): row for row in csv.DictReader(file) if row["metric"] == "accuracy"}
    for site in ("north", "south"):
        chosen = [row for row in cases if row["column/site"] == site]
        right = sum(row["predicted"] == row["label"] for row in chosen)
        assert int(groups["site", site]["n_samples"]) == len(chosen)
        assert float(groups["site", site]["value"]) == pytest.approx(right / len(chosen))
    assert "site" not in json.dumps(json.loads((run / "plan.json").read_text())["tabular"])
