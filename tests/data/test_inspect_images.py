"""Labelled images: what is unlike the others, on sheets by class."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from medtrain.cli.app import app
from medtrain.data.inspect_images import _remark
from medtrain.data.sample import Sample, SampleSet, Target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of eight grey images of 20 x 30 pixels."""
    rng = np.random.default_rng(0)
    for name, level in (("ill", 120), ("well", 110)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(8):
            pixels = rng.normal(level, 20, (20, 30)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{index}.png")
    return tmp_path / "set"


def run(folder: Path, out: Path, *words: str) -> Result:
    arguments = ["data", "inspect", "data=image_folder", f"data.root={folder}", "--out", str(out), *words]
    return CliRunner().invoke(app, arguments)


def outliers(out: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with (out / "outliers.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["case_id"], []).append(row["message"])
    return found


def test_equal_sets_have_no_outliers(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert outliers(tmp_path / "out") == {}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cases.csv",
        "inspected.json",
        "outliers.csv",
        "sheet_ill_01.png",
        "sheet_well_01.png",
    ]
    with (tmp_path / "out" / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = np.asarray(Image.open(folder / "ill" / "0.png").copy())
    assert (rows[0]["case_id"], rows[0]["class"], rows[0]["pixels"]) == ("ill/0", "ill", "20 x 30")
    assert float(rows[0]["mean"]) == pytest.approx(pixels.mean(), rel=1e-5)


def test_images_unlike_the_others(folder: Path, tmp_path: Path) -> None:
    with Image.open(folder / "ill" / "1.png") as picture:
        one = np.asarray(picture)
    Image.fromarray(np.kron(one, np.ones((4, 4), np.uint8))).save(folder / "ill" / "2.png")
    Image.fromarray((one // 8).astype(np.uint8)).save(folder / "well" / "3.png")
    Image.fromarray(np.full((20, 30), 7, np.uint8)).save(folder / "well" / "4.png")
    Image.fromarray(np.stack([one] * 3, axis=-1) // 2 * 2).save(folder / "well" / "5.png")
    Image.fromarray(one).save(folder / "well" / "6.png")
    result = run(folder, tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    found = outliers(tmp_path / "out")
    assert found["ill/2"] == ["80 x 120 pixels, usually 20 x 30"]
    assert any(message.startswith("mean ") for message in found["well/3"])
    assert found["well/4"][0] == "every pixel is 7"
    assert found["well/5"] == ["3 channels, usually 1"]
    assert found["ill/1"] == ["the same image as well/6, which is labelled otherwise"]
    assert found["well/6"] == ["the same image as ill/1, which is labelled otherwise"]
    assert set(found) == {"ill/1", "ill/2", "well/3", "well/4", "well/5", "well/6"}


def test_images_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    (folder / "ill" / "3.png").write_bytes(b"no image")
    result = run(folder, tmp_path / "out")
    assert result.exit_code == 1
    assert "1 problem:" in result.stdout
    assert list(outliers(tmp_path / "out")) == ["ill/3"]


def test_files_that_are_missing_do_not_hide_the_others(folder: Path, tmp_path: Path) -> None:
    lines = [f"{name}/{index}.png,{name}" for name in ("ill", "well") for index in range(8)]
    (tmp_path / "set.csv").write_text("\n".join(["file,class", *lines, "ill/8.png,ill", "ill/9.png,ill"]))
    (folder / "well" / "3.png").write_bytes(b"no image")
    words = ["data=csv", f"data.path={tmp_path / 'set.csv'}", f"data.root={folder}"]
    words += ["data.images=[file]", "data.targets=[class]", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["data", "inspect", *words])
    assert result.exit_code == 1
    assert "3 problems:" in result.stdout  # those of the table, and those of the files
    for name in ("8.png", "9.png", "3.png"):
        assert name in result.stdout
    with (tmp_path / "out" / "cases.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 18


def test_targets_that_are_no_classes_share_a_sheet(folder: Path, tmp_path: Path) -> None:
    rows = [f"ill/{index}.png,{index / 2},1" for index in range(8)]
    (folder / "table.csv").write_text("\n".join(["file,age,bad", *rows]))
    words = [
        "data=csv",
        f"data.path={folder}/table.csv",
        "data.images=[file]",
        "data.targets=[age]",
        "data.target_kind=number",
    ]
    arguments = ["data", "inspect", *words, "task=regression", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["sheet_all_01.png"]


def test_tables_without_images_are_refused(folder: Path, tmp_path: Path) -> None:
    rows = [f"{index},{index % 2}" for index in range(8)]
    (folder / "table.csv").write_text("\n".join(["age,bad", *rows]))
    words = ["data=csv", f"data.path={folder}/table.csv", "data.numeric=[age]", "data.targets=[bad]"]
    result = CliRunner().invoke(app, ["data", "inspect", *words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "holds no images" in result.stderr


def test_samples_of_several_images_show_four_of_them(in_tmp: Path) -> None:
    result = CliRunner().invoke(app, ["data", "inspect", "data=phantom_bags", "data.num_samples=8", "--out", "out"])
    assert result.exit_code == 0, result.stderr
    with (in_tmp / "out" / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["case_id"] for row in rows}) == 8
    assert len({row["image"] for row in rows}) == len(rows) > 8
    assert sorted(path.name for path in (in_tmp / "out").glob("*.png")) == [
        "sheet_negative_01.png",
        "sheet_positive_01.png",
    ]


def test_of_findings_those_that_are_there_are_named() -> None:
    findings = [Target(name, ("no", "yes")) for name in ("nodule", "effusion")]
    targets = (*findings, Target("grade", ("a", "b", "c")), Target("age", None))

    def remark(*values: int | float | None) -> str:
        sample = Sample("s", (Path("x"),), values, "s")
        return _remark(SampleSet("set", Path(), (sample,), targets), sample, told=True)

    assert remark(1, 0, None, None) == "nodule"
    assert remark(0, 1, 2, 61.5) == "grade c, age 61.5, effusion"
    assert remark(0, 0, None, None) == "none"
    assert remark(None, None, None, None) == "unlabelled"
