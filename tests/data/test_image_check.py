from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from medtrain.data.columns import TableColumns, TargetColumn
from medtrain.data.digests import DigestCache
from medtrain.data.image_check import check_leaks, find_duplicates, inspect_images
from medtrain.data.image_sets import read_medmnist
from medtrain.data.sample import Sample, SampleSet, Target
from medtrain.data.table import read_table


def sample_set(root: Path, *samples: Sample) -> SampleSet:
    return SampleSet("set", root, samples, (Target("y", ("0", "1")),))


def picture(path: Path, seed: int) -> Path:
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 30), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("decode", [False, True])
def test_every_unreadable_image_is_listed_at_once(tmp_path: Path, decode: bool) -> None:
    good = picture(tmp_path / "good.png", 0)
    data = good.read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:-30])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("404")
    names = ["cut.png", "empty.png", "good.png", "none.png", "text.png"]
    found = sample_set(tmp_path, *(Sample(name, (tmp_path / name,), (0,), name) for name in names))
    calls: list[tuple[int, int, str]] = []
    report = inspect_images(found, decode=decode, workers=2, progress=lambda *call: calls.append(call))
    assert [(problem.where, problem.message[:9]) for problem in report.problems] == [
        ("cut.png", "truncated"),
        ("empty.png", "the file "),
        ("none.png", "no such f"),
        ("text.png", "not a PNG"),
    ]
    assert list(report.digests) == [good]
    assert calls == [(index, 5, name) for index, name in enumerate(names, start=1)]


def test_damage_in_the_middle_is_found_by_decoding(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    Pillow.fromarray(np.array([[1.0, np.nan]], np.float32)).save(tmp_path / "nan.tif")
    found = sample_set(tmp_path, Sample("a", (path,), (0,), "a"), Sample("n", (tmp_path / "nan.tif",), (0,), "n"))
    assert inspect_images(found).problems == ()
    messages = [problem.message for problem in inspect_images(found, decode=True).problems]
    assert messages == [
        "damaged: its image cannot be decoded; copy or download it again",
        "holds NaN or infinite values",
    ]


def test_a_large_file_with_something_appended_is_whole(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 0)
    path.write_bytes(path.read_bytes() + bytes(200_000))
    assert inspect_images(sample_set(tmp_path, Sample("a", (path,), (0,), "a"))).problems == ()


def test_digests_are_remembered(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 0)
    found = sample_set(tmp_path, Sample("a", (path,), (0,), "a"))
    first = inspect_images(found, cache=DigestCache(tmp_path / "digests.json"))
    assert (tmp_path / "digests.json").is_file()
    assert inspect_images(found, cache=DigestCache(tmp_path / "digests.json")) == first
    assert inspect_images(found).digests == first.digests


def test_one_image_or_patient_in_two_parts(tmp_path: Path) -> None:
    first, other = picture(tmp_path / "1.png", 1), picture(tmp_path / "2.png", 2)
    copy = tmp_path / "copy.png"
    copy.write_bytes(first.read_bytes())
    again = tmp_path / "again.tif"  # the same picture in another format
    with Pillow.open(other) as image:
        image.save(again)
    found = sample_set(
        tmp_path,
        Sample("a", (first,), (0,), "p1"),
        Sample("b", (other, None), (0,), "p2"),
        Sample("c", (copy,), (1,), "p3"),
        Sample("d", (again,), (0,), "p2"),
    )
    parts = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    copied = "copy.png: in val, is the same image as 1.png in train"
    patient = "split: patients in both train and test: p2"
    plain = inspect_images(found).digests
    assert [str(problem) for problem in check_leaks(found, parts)] == [patient]
    assert [str(problem) for problem in check_leaks(found, parts, plain)] == [patient, copied]
    deep = inspect_images(found, decode=True).digests
    assert [str(problem) for problem in check_leaks(found, parts, deep)] == [
        patient,
        copied,
        "again.tif: in test, is the same image as 2.png in train",
    ]
    assert check_leaks(found, {"train": ["a", "c"], "val": ["b", "d"]}, deep) == []
    assert [str(problem) for problem in find_duplicates(found, deep)] == [
        "1.png: the same image as copy.png of different patients and with different targets",
        "2.png: the same image as again.tif",
    ]


def test_equal_images_of_an_array(tmp_path: Path, rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (6, 4, 4), dtype=np.uint8)
    images[4] = images[1]
    arrays = {"train_images": images[:3], "val_images": images[3:5], "test_images": images[5:]}
    labels = {f"{part}_labels": np.zeros((n, 1), np.uint8) for part, n in (("train", 3), ("val", 2), ("test", 1))}
    np.savez(tmp_path / "m.npz", **arrays, **labels)
    found = read_medmnist(tmp_path / "m.npz")
    parts: dict[str, list[str]] = {}
    for sample in found.samples:
        parts.setdefault(str(sample.part), []).append(sample.sample_id)
    leaks = check_leaks(found, parts, inspect_images(found).digests)
    assert [str(leak) for leak in leaks] == [
        "m.npz[val_images][1]: in val, is the same image as m.npz[train_images][1] in train"
    ]


def test_real_radiographs_are_whole() -> None:
    named = os.environ.get("MEDTRAIN_DATA")
    folder = Path(named or ".") / "brixia_cxr"
    if not named or not (folder / "labels.csv").is_file():
        pytest.skip("no real radiographs: set MEDTRAIN_DATA to the folder that holds brixia_cxr")
    columns = TableColumns(images=("image",), image_folder="images", targets=(TargetColumn(column="zone_a"),))
    found = read_table(folder / "labels.csv", columns)
    report = inspect_images(found, decode=True)
    assert report.problems == ()
    assert len(report.digests) == len(found.samples)
