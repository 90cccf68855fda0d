from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medtrain.data.sources.check import check_source
from medtrain.data.sources.csv import CsvData
from medtrain.data.sources.phantom_bags import PhantomBags
from medtrain.data.sources.phantom_images import PhantomImages
from medtrain.data.sources.phantom_views import PhantomViews
from medtrain.errors import UsageError


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    root = tmp_path / "p"
    PhantomImages(root=str(root), num_samples=60, annotated=1.0).read()
    (root / "phantom.json").unlink()
    return root


def source(root: Path, **settings: object) -> CsvData:
    columns = {"images": ("image",), "targets": "finding", "group": "patient", "annotation": "mask", **settings}
    return CsvData(path=str(root / "labels.csv"), **columns)  # type: ignore[arg-type]


def test_a_set_without_faults(phantom: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    report = check_source(source(phantom), progress=lambda *call: calls.append(call))
    assert (report.problems, report.warnings) == ((), ())
    lines = report.summary
    assert lines[0].startswith("60 samples of ")
    assert [line.split(":")[0] for line in lines[1:]] == ["train", "val", "test", "finding"]
    assert sum(int(line.split()[1]) for line in lines[1:4]) == 60
    assert lines[4].startswith("finding: effusion ")
    assert len(calls) == calls[-1][1] > 60  # masks are read too


def test_missing_files_are_all_named(phantom: Path) -> None:
    for name in ("images/0003.png", "images/0017.png"):
        (phantom / name).unlink()
    report = check_source(source(phantom))
    assert [problem.where for problem in report.problems] == ["images/0003.png", "images/0017.png"]
    assert report.summary == ()


def test_missing_and_unreadable_files_and_wrong_cells_are_named_together(phantom: Path) -> None:
    (phantom / "images/0003.png").unlink()
    (phantom / "images/0005.png").write_bytes(b"")
    table = phantom / "labels.csv"
    header, first, *rows = table.read_text().splitlines()
    place = header.split(",").index("finding")
    cells = first.split(",")
    cells[place] = "none of these"
    table.write_text("\n".join([header, ",".join(cells), *rows]))
    report = check_source(source(phantom, target_classes=("effusion", "infiltrate", "nodule", "normal")))
    told = {problem.where: problem.message for problem in report.problems}
    assert told["images/0003.png"].startswith("no such file (line")
    assert told["images/0005.png"] == "the file is empty"
    assert "'none of these' in line 2 is none of the classes" in told[str(table)]
    assert len(report.problems) == 3


def test_a_table_without_any_of_its_files_is_one_problem(phantom: Path, tmp_path: Path) -> None:
    table = phantom / "labels.csv"
    table.rename(tmp_path / "labels.csv")
    columns = {"images": ("image",), "targets": "finding"}
    report = check_source(CsvData(path=str(tmp_path / "labels.csv"), **columns))  # type: ignore[arg-type]
    (problem,) = report.problems
    assert problem.where == str(tmp_path)
    shown = "images/0000.png, images/0001.png, images/0002.png"
    assert problem.message == f"holds none of the 60 files that the table names, such as {shown}"
    assert problem.hint == "set data.root to the folder that these names are below"


def test_unreadable_images_doubles_and_leaks_are_told_together(phantom: Path) -> None:
    data = source(phantom)
    split = data.find().split
    by_id = {sample.sample_id: sample for sample in data.read().samples}
    train, other, val = split["train"][0], split["train"][1], split["val"][0]
    files = [phantom / f"{sample_id}.png" for sample_id in (train, other, val)]
    assert all(file.is_file() for file in files)
    shutil.copy(files[0], files[2])  # an image of train in val
    files[1].write_bytes(files[1].read_bytes()[:200])
    mask = next(s.annotation for s in by_id.values() if s.annotation is not None)
    assert isinstance(mask, Path)
    mask.write_bytes(b"")
    report = check_source(data)
    told = {problem.where: problem.message for problem in report.problems}
    assert told[f"{other}.png"].startswith("truncated")
    assert told[str(mask.relative_to(phantom))] == "the file is empty"
    assert told[f"{val}.png"] == f"in val, is the same image as {train}.png in train"
    assert len(told) == 3
    warned = check_source(source(phantom, duplicates="warn"))
    assert len(warned.problems) == 2
    assert f"{val}.png" in {warning.where for warning in warned.warnings}
    ignored = check_source(source(phantom, duplicates="ignore"))
    assert len(ignored.problems) == 2


def test_a_patient_in_two_parts_is_a_problem(phantom: Path) -> None:
    data = source(phantom)
    patients: dict[str, list[str]] = {}
    for sample in data.read().samples:
        patients.setdefault(sample.group, []).append(sample.sample_id)
    patient, ids = next((patient, ids) for patient, ids in patients.items() if len(ids) > 1)
    lines = [
        f"{sample_id},{'val' if sample_id == ids[0] else 'train'}" for group in patients.values() for sample_id in group
    ]
    parts = phantom / "parts.csv"
    parts.write_text("\n".join(["id,part", *lines]))
    report = check_source(source(phantom, splits=str(parts)))
    assert [problem.message for problem in report.problems] == [f"patients in both train and val: {patient}"]


def test_a_class_that_a_part_lacks_is_a_warning(phantom: Path) -> None:
    table = (phantom / "labels.csv").read_text().splitlines()
    head, *rows = table
    rare = [row.replace("nodule", "normal") if "nodule" in row else row for row in rows]
    first = next(index for index, row in enumerate(rare) if "normal" in row)
    rare[first] = rare[first].replace("normal", "nodule")
    (phantom / "labels.csv").write_text("\n".join([head, *rare]))
    report = check_source(source(phantom))
    messages = {(warning.where, warning.message) for warning in report.warnings}
    assert ("val", "has no sample of class nodule of finding") in messages or (
        "test",
        "has no sample of class nodule of finding",
    ) in messages


def test_views_and_bags_in_words(tmp_path: Path) -> None:
    views = PhantomViews(root=str(tmp_path / "v"), num_samples=12, volume_shape=(8, 8, 8), missing=0.4)
    line = check_source(views, decode=False).summary[0]
    missing = sum(image is None for sample in views.read().samples for image in sample.images)
    assert line == f"12 samples of 12 patients, views non_contrast, arterial, portal, {missing} missing"
    bags = PhantomBags(root=str(tmp_path / "b"), num_samples=12, min_bag=3, max_bag=9)
    sizes = [len(sample.images) for sample in bags.read().samples]
    assert check_source(bags).summary[0] == f"12 samples of 12 patients, bags of {min(sizes)} to {max(sizes)} images"


def test_wrong_settings_are_no_findings(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such table"):
        check_source(source(tmp_path))
