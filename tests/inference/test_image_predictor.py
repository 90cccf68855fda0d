"""Predictions of images, bags and tables: what the network says, row by row, whatever happens on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from scipy.special import softmax

from medtrain.data.images.copies import ImageCopies
from medtrain.data.images.samples import SampleReader
from medtrain.data.sample import Sample
from medtrain.data.transforms.images.none import NoImageAugmentation
from medtrain.errors import UsageError
from medtrain.inference.image_predictor import ImagePredictor
from tests.inference.image_runs import TABLE, TargetPlan, picture, plan, read_table, run, write_table

NAMES = ("healthy", "nodule", "effusion")


def _folder(root: Path, count: int = 5) -> Path:
    for index in range(count):
        picture(root / "sub" / f"x{index}.png", index, (24, 20))
    return root


def _evaluated(its_run: Any, samples: list[Sample]) -> dict[str, Any]:
    """Records as the run's evaluation makes them, of labelled samples in batches of the plan."""
    its_plan = its_run.plan
    copies = ImageCopies(Path(), its_plan.image_format, copied={}, digests={})
    size = its_plan.image_size
    augment = NoImageAugmentation(image_size=size, spatial_dims=len(size), in_channels=its_plan.in_channels)
    reader = SampleReader(plan=its_plan, copies=copies, augment=augment)
    records: dict[str, Any] = {}
    with torch.inference_mode():
        for start in range(0, len(samples), its_plan.batch_size):
            batch = reader.collate([reader.read(sample) for sample in samples[start : start + its_plan.batch_size]])
            for record in its_run.task.evaluation_step(its_run.model, batch, final=True):
                records[record["case_id"]] = record
    return records


def test_a_folder_gives_bit_for_bit_what_evaluation_gives(tmp_path: Path) -> None:
    images = _folder(tmp_path / "in")
    its_run = run(plan(), tmp_path)
    samples = [Sample(f"sub/x{i}", (images / "sub" / f"x{i}.png",), (i % 3,), group=str(i)) for i in range(5)]
    expected = _evaluated(its_run, samples)

    assert ImagePredictor(its_run).predict(images, tmp_path / "out")

    rows = read_table(tmp_path / "out" / "predictions.csv")
    assert list(rows) == [f"sub/x{i}" for i in range(5)]
    for case_id, row in rows.items():
        assert (row["file"], row["status"], row["message"]) == (f"{case_id}.png", "done", "")
        assert [row[f"prob/{name}"] for name in NAMES] == [repr(expected[case_id][f"prob/{name}"]) for name in NAMES]
        assert row["predicted"] == NAMES[expected[case_id]["predicted"]]
    assert not {"label", "group", "loss", "loss_weight"} & set(rows["sub/x0"])


def test_probabilities_by_hand(tmp_path: Path) -> None:
    image = picture(tmp_path / "one.png", 3)
    its_run = run(plan(), tmp_path)
    ImagePredictor(its_run).predict(image, tmp_path / "table.csv")
    pixels = np.asarray(np.float32(cv2.imread(str(image), 0)) / 255)
    logits = ((pixels.ravel() - 0.4) / 0.2) @ its_run.model.weight.detach().numpy()  # [64] @ [64, 3]
    row = read_table(tmp_path / "table.csv")["one"]
    np.testing.assert_allclose([float(row[f"prob/{name}"]) for name in NAMES], softmax(logits), rtol=1e-5)


@pytest.mark.parametrize("name", ["OUT.txt", "OUT.tsv", "OUT.xlsx"])
def test_only_csv_files_are_written(tmp_path: Path, name: str) -> None:
    image = picture(tmp_path / "one.png", 3)
    with pytest.raises(UsageError, match=f"{name} is named like a file") as error:
        ImagePredictor(run(plan(), tmp_path)).predict(image, tmp_path / name)
    assert error.value.hint == str(tmp_path / "OUT.csv")
    assert not (tmp_path / name).exists()
    assert ImagePredictor(run(plan(), tmp_path)).predict(image, tmp_path / "v1.2")  # a folder


def test_unreadable_images_are_told_and_the_others_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = _folder(tmp_path / "in")
    (images / "sub" / "x1.png").write_bytes(b"\x89PNG\r\n\x1a\n then nothing")
    predictor = ImagePredictor(run(plan(), tmp_path))

    assert not predictor.predict(images, tmp_path / "out")

    rows = read_table(tmp_path / "out" / "predictions.csv")
    assert [row["status"] for row in rows.values()] == ["done", "failed", "done", "done", "done"]
    assert "truncated" in rows["sub/x1"]["message"]
    assert rows["sub/x1"]["predicted"] == ""
    assert "sub/x1 is not predicted" in caplog.text

    # mended and started again, only this one is predicted
    picture(images / "sub" / "x1.png", 1)
    before = {key: row for key, row in rows.items() if key != "sub/x1"}
    assert predictor.predict(images, tmp_path / "out")
    after = read_table(tmp_path / "out" / "predictions.csv")
    assert after["sub/x1"]["status"] == "done"
    assert {key: row for key, row in after.items() if key != "sub/x1"} == before


class _KilledError(BaseException):
    """Nothing in between catches it."""


def test_an_interrupted_run_continues_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = _folder(tmp_path / "in", 7)
    whole = run(plan(), tmp_path)
    ImagePredictor(whole).predict(images, tmp_path / "whole")

    its_run, seen = run(plan(), tmp_path), []
    step = its_run.task.evaluation_step

    def until_killed(model: Any, item: Any, *, final: bool) -> Any:
        if len(seen) >= 1:
            raise _KilledError
        seen.append(item["case_id"])
        return step(model, item, final=final)

    its_run.task.evaluation_step = until_killed
    with pytest.raises(_KilledError):
        ImagePredictor(its_run).predict(images, tmp_path / "out")
    assert len(read_table(tmp_path / "out" / "predictions.csv")) == 3

    def note(model: Any, item: Any, *, final: bool) -> Any:
        seen.append(item["case_id"])
        return step(model, item, final=final)

    its_run.task.evaluation_step = note
    assert ImagePredictor(its_run).predict(images, tmp_path / "out")
    assert seen == [[f"sub/x{i}" for i in batch] for batch in ((0, 1, 2), (3, 4, 5), (6,))]
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == (tmp_path / "whole" / "predictions.csv").read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["predictions.csv", "predictions.json"]


def test_another_model_or_a_foreign_table_is_not_overwritten(tmp_path: Path) -> None:
    images = _folder(tmp_path / "in", 2)
    its_run = run(plan(), tmp_path)
    ImagePredictor(its_run).predict(images, tmp_path / "out")
    its_run.step = 8
    with pytest.raises(UsageError, match=r"another model or setting \(step 7\)"):
        ImagePredictor(its_run).predict(images, tmp_path / "out")
    (tmp_path / "thesis.csv").write_text("years,of,work\n")
    with pytest.raises(UsageError, match=r"already holds thesis.csv"):
        ImagePredictor(its_run).predict(images, tmp_path / "thesis.csv")
    assert (tmp_path / "thesis.csv").read_text() == "years,of,work\n"
    assert ImagePredictor(its_run).predict(images, tmp_path / "out", overwrite=True)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["step"] == 8


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [
        ((3, 20), None, "only 3 x 20 pixels, and the model looks at 8 x 8"),
        ((20, 20), 7, "no contrast: every pixel has the same value"),
        ((20, 20, 3), None, "in colour, and the training images are grey: it was made grey"),
    ],
)
def test_images_unlike_the_training_ones_are_doubted(
    tmp_path: Path, shape: tuple[int, ...], value: int | None, message: str
) -> None:
    path = picture(tmp_path / "odd.png", 0, shape)
    if value is not None:
        assert cv2.imwrite(str(path), np.full(shape, value, np.uint8))
    assert ImagePredictor(run(plan(), tmp_path)).predict(path, tmp_path / "out.csv")
    assert read_table(tmp_path / "out.csv")["odd"]["message"] == message


def test_bags_are_folders_and_tell_which_instance_decided(tmp_path: Path) -> None:
    for bag, count in (("a", 2), ("b", 4)):
        for index in range(count):
            picture(tmp_path / "in" / bag / f"{index}.png", 10 * count + index)
    its_run = run(plan(max_instances=3), tmp_path)

    assert ImagePredictor(its_run).predict(tmp_path / "in", tmp_path / "out")

    rows = read_table(tmp_path / "out" / "predictions.csv")
    assert [rows[bag]["file"].count(".png") for bag in ("a", "b")] == [2, 4]  # all instances, more than in training
    lines = (tmp_path / "out" / "predictions_attention.csv").read_text().splitlines()
    assert lines[0] == "case_id,instance,file,attention"
    cells = [line.split(",") for line in lines[1:]]
    assert [(case, place, file) for case, place, file, _ in cells] == [
        *((bag, str(i), f"{bag}/{i}.png") for bag, count in (("a", 2), ("b", 4)) for i in range(count))
    ]
    assert sum(float(weight) for case, *_, weight in cells if case == "b") == pytest.approx(1, abs=1e-5)


def test_what_another_process_writes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(4):
        picture(tmp_path / ("one" if index < 2 else "other") / f"bag_{index // 2}" / f"{index}.png", index)
    its_run, out = run(plan(max_instances=3), tmp_path), tmp_path / "out"
    alone = ImagePredictor._predict_batch

    def beside(self: ImagePredictor, batch: Any, table: Any) -> int:
        if not (out / "done").exists():
            (out / "done").touch()
            assert ImagePredictor(its_run).predict(tmp_path / "other", out)
        return alone(self, batch, table)

    monkeypatch.setattr(ImagePredictor, "_predict_batch", beside)
    assert ImagePredictor(its_run).predict(tmp_path / "one", out)
    assert sorted(read_table(out / "predictions.csv")) == ["bag_0", "bag_1"]
    lines = (out / "predictions_attention.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ["bag_0", "bag_0", "bag_1", "bag_1"]


def test_a_table_may_lack_the_targets_and_name_missing_files(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "p1.png", 1)
    picture(tmp_path / "images" / "p2.png", 2)
    rows = [
        {"image": "images/p1.png", "age": "60", "sex": "m"},
        {"image": "images/p2.png", "age": "", "sex": "x"},
        {"image": "images/gone.png", "age": "50", "sex": "f"},
    ]
    table = write_table(tmp_path / "new.csv", rows)
    data = {
        "name": "csv",
        "path": str(tmp_path / "training.csv"),
        "images": ["image"],
        "targets": "finding",
        "group": "patient",
        "numeric": ["age"],
        "categorical": ["sex"],
    }
    its_run = run(plan(tabular=TABLE), tmp_path, data=data)

    assert not ImagePredictor(its_run).predict(table, tmp_path / "out")

    found = read_table(tmp_path / "out" / "predictions.csv")
    assert [row["status"] for row in found.values()] == ["failed", "done", "done"]
    assert "no such file" in found["images/gone"]["message"]
    # labels that are there make no difference
    labelled = write_table(tmp_path / "labelled.csv", [{**row, "finding": "no class"} for row in rows])
    ImagePredictor(its_run).predict(labelled, tmp_path / "other")
    assert read_table(tmp_path / "other" / "predictions.csv") == found
    with pytest.raises(UsageError, match=r"values of a table \(age, sex\)") as caught:
        ImagePredictor(its_run).predict(tmp_path / "images", tmp_path / "third")
    assert caught.value.hint == "give a table (.csv, .tsv or .parquet) with the columns image, age, sex"


def test_zones_have_classes_grades_a_score_and_a_risk(tmp_path: Path) -> None:
    zones = [TargetPlan(name, ("0", "1", "2", "3", "unknown"), (1,) * 5) for name in ("left_sup", "right_sup")]
    its_run = run(plan(*zones, paired_targets=((0, 1),)), tmp_path, task="zones")
    ImagePredictor(its_run).predict(picture(tmp_path / "chest.png", 5), tmp_path / "out.csv")
    row = read_table(tmp_path / "out.csv")["chest"]
    assert {"score", "risk", "predicted/left_sup", "grade/right_sup", "prob/left_sup/unknown"} <= set(row)
    assert row["predicted/left_sup"] in ("0", "1", "2", "3", "unknown")
    known = [
        int(row[f"predicted/{zone.target_name}"]) for zone in zones if row[f"predicted/{zone.target_name}"] != "unknown"
    ]
    assert float(row["score"]) == pytest.approx(np.mean(known)) if known else row["score"] == "nan"


def test_thresholds_come_from_the_run(tmp_path: Path) -> None:
    binary = TargetPlan("ill", ("no", "yes"), (4, 4))
    image = picture(tmp_path / "one.png", 3)
    said = []
    for threshold in (0.0001, 0.9999):
        options: dict[str, Any] = {"inference": {"threshold": "youden"}, "decision": {"threshold/yes": threshold}}
        ImagePredictor(run(plan(binary), tmp_path, **options)).predict(image, tmp_path / f"{threshold}.csv")
        said.append(read_table(tmp_path / f"{threshold}.csv")["one"]["predicted"])
    assert said == ["yes", "no"]


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_nothing_to_predict_is_an_error_that_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no images|no such file or folder"):
        ImagePredictor(run(plan(), tmp_path)).predict(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_row_is_only_kept_for_the_same_files_and_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed, day in enumerate(("mon", "tue")):
        picture(tmp_path / day / "IM0001.png", seed)
    predictor = ImagePredictor(run(plan(), tmp_path))
    for day in ("mon", "tue"):
        assert predictor.predict(tmp_path / day / "IM0001.png", tmp_path / f"{day}.csv")
    expected = {day: read_table(tmp_path / f"{day}.csv") for day in ("mon", "tue")}
    assert expected["mon"]["IM0001"]["prob/nodule"] != expected["tue"]["IM0001"]["prob/nodule"]

    out = tmp_path / "out.csv"
    predictor.predict(tmp_path / "mon" / "IM0001.png", out)
    predictor.predict(tmp_path / "tue" / "IM0001.png", out)
    assert read_table(out) == expected["tue"]
    assert "rows of other files or values with the same ids are replaced: IM0001" in caplog.text

    picture(tmp_path / "tue" / "IM0001.png", 2)  # another content under the same name
    predictor.predict(tmp_path / "tue" / "IM0001.png", out)
    assert read_table(out)["IM0001"]["prob/nodule"] != expected["tue"]["IM0001"]["prob/nodule"]


def test_a_corrected_value_of_the_table_is_predicted_again(tmp_path: Path) -> None:
    for index in range(2):
        picture(tmp_path / f"{index}.png", index)
    data = {"name": "csv", "path": "t.csv", "images": ["image"], "numeric": ["age"], "categorical": ["sex"]}
    predictor = ImagePredictor(run(plan(tabular=TABLE), tmp_path, data={**data, "targets": "finding"}))
    rows = [{"image": f"{index}.png", "age": "60", "sex": "m"} for index in range(2)]
    predictor.predict(write_table(tmp_path / "new.csv", rows), tmp_path / "out.csv")
    before = read_table(tmp_path / "out.csv")
    for name, value in (("age", "20"), ("sex", "f")):
        rows[0][name] = value
        predictor.predict(write_table(tmp_path / "new.csv", rows), tmp_path / "out.csv")
        after = read_table(tmp_path / "out.csv")
        assert after["0"]["prob/nodule"] != before["0"]["prob/nodule"]
        assert after["1"] == before["1"]
        before = after


class Own(torch.nn.Module):
    """Computes its own loss where there is a target."""

    def forward(self, image: torch.Tensor, target: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        mean = image.flatten(1).mean(1)
        if target is None:
            return {"brightness": mean, "halves": image.mean((1, 2)).chunk(2, dim=1)[0].mean(1).repeat(2, 1).T}
        return {"loss": (mean - target[:, 0]).square().mean()}


class Needy(torch.nn.Module):
    def forward(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (image.mean() - target.mean()).square()


def test_what_a_generic_model_returns_is_written(tmp_path: Path) -> None:
    images = _folder(tmp_path / "in")
    its_run = run(plan(), tmp_path, task="generic", loss="from_model")
    its_run.model = Own()
    assert ImagePredictor(its_run).predict(images, tmp_path / "out.csv")
    rows = read_table(tmp_path / "out.csv")
    assert len(rows) == 5
    row = rows["x0"] if "x0" in rows else next(iter(rows.values()))
    assert row["status"] == "done"
    assert {"brightness", "halves/0", "halves/1"} <= set(row)
    assert row["halves/0"] == row["halves/1"]
    its_run.model = Needy()
    with pytest.raises(UsageError, match="needs `target` to be called") as error:
        ImagePredictor(its_run)
    assert "target=None" in str(error.value.hint)
