from __future__ import annotations

import json
import logging
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from medtrain.data.images.copies import CONSTANT, ImageCopies, copy_path, load_copy, prepare_images, save_copy
from medtrain.data.images.plan import ImageFormat
from medtrain.data.images.reading import read_annotation, read_for
from medtrain.data.marks import Box
from medtrain.data.sample import Annotation, ArrayItem, ImageRef, Sample, SampleSet, Target
from medtrain.errors import ConfigError, DataError
from tests.data.images.small_sets import Given, open_module, picture, small_set


def smooth(path: Path, shape: tuple[int, ...], seed: int = 0) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, *shape[2:]), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.resize(noise, shape[1::-1], interpolation=cv2.INTER_CUBIC))
    return path


def prepare(refs: list[ImageRef], form: ImageFormat, root: Path, **options: Any) -> ImageCopies:
    return prepare_images(refs, form, store=root / "store", root=root, **{"copy": True, "workers": 1} | options)


def test_every_unusable_image_is_told_at_once(tmp_path: Path) -> None:
    samples = small_set(tmp_path, 8)
    (tmp_path / "s00.png").write_bytes(b"")
    data = (tmp_path / "s01.png").read_bytes()
    (tmp_path / "s01.png").write_bytes(data[: len(data) // 2])
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 255
    (tmp_path / "s02.png").write_bytes(damaged)
    (tmp_path / "s03.png").unlink()
    with pytest.raises(DataError) as caught:
        open_module(Given(samples=samples, store=str(tmp_path / "store")))
    told = {problem.where: problem.message for problem in caught.value.problems}
    assert sorted(told) == ["s00.png", "s01.png", "s02.png", "s03.png"]
    assert "no such file" in told["s03.png"]
    assert "damaged" in told["s02.png"]


@pytest.mark.parametrize("decision", ["error", "warn", "ignore"])
def test_an_identical_image_in_two_parts(tmp_path: Path, decision: str, caplog: pytest.LogCaptureFixture) -> None:
    samples = small_set(tmp_path, 8)
    # the same pixels in another file format
    cv2.imwrite(str(tmp_path / "s07.tif"), cv2.imread(str(tmp_path / "s00.png")))
    rows = [replace(s, part="val" if i > 5 else "train") for i, s in enumerate(samples.samples)]
    rows[7] = replace(rows[7], images=(tmp_path / "s07.tif",))
    settings = Given(
        samples=replace(samples, samples=tuple(rows)),
        store=str(tmp_path / "store"),
        duplicates=decision,  # type: ignore[arg-type]
    )
    if decision == "error":
        with pytest.raises(DataError, match=r"s07.tif: in val, is the same image as s00.png in train"):
            open_module(settings)
        return
    with caplog.at_level(logging.WARNING):
        open_module(settings)
    assert ("s07.tif" in caplog.text) == (decision == "warn")


def test_empty_pictures_are_no_copies_of_each_other(tmp_path: Path) -> None:
    samples = small_set(tmp_path, 8)
    for name in ("s00.png", "s07.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((12, 10, 3), np.uint8))
    rows = [replace(s, part="val" if i > 5 else "train") for i, s in enumerate(samples.samples)]
    data, *_ = open_module(Given(samples=replace(samples, samples=tuple(rows)), store=str(tmp_path / "store")))
    assert sum(digest.startswith(CONSTANT) for digest in data.copies.digests.values()) == 2


def test_a_patient_in_two_parts_is_an_error(tmp_path: Path) -> None:
    samples = small_set(tmp_path, 8)
    rows = [replace(s, part="val" if i > 6 else "train") for i, s in enumerate(samples.samples)]
    with pytest.raises(DataError, match="patients in both train and val: p03"):
        Given(samples=replace(samples, samples=tuple(rows))).find()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_copies_hold_what_reading_gives(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = smooth(tmp_path / f"large{suffix}", (200, 260, 3))
    small = smooth(tmp_path / "small.png", (40, 40, 3))
    form = ImageFormat(2, (16, 20), 3)
    copies = prepare([path, small], form, tmp_path)
    assert list(copies.copied) == [str(path), str(small)]
    expected = read_for(form, path)
    # 200 / 16 = 12.5 and 260 / 20 = 13 times as large: 2 / 12.5 of it is kept
    assert expected.shape == (32, 42, 3) if suffix == ".png" else expected.shape[0] >= 32
    assert expected.dtype == np.uint8
    copies = pickle.loads(pickle.dumps(copies))
    monkeypatch.setattr("medtrain.data.images.copies.read_for", pytest.fail)
    assert np.array_equal(copies.read(path), expected)
    # a second run finds the work of the first
    again = prepare([path, small], form, tmp_path)
    assert again.copied == copies.copied
    assert len(again.digests) == 2


def test_a_lost_or_damaged_copy_is_made_again(tmp_path: Path) -> None:
    path = smooth(tmp_path / "large.png", (200, 260))
    form = ImageFormat(2, (16, 20), 1)
    copies = prepare([path], form, tmp_path)
    place = copy_path(copies.folder, copies.copied[str(path)])
    expected = copies.read(path)
    data = bytearray(place.read_bytes())
    data[-5] ^= 255
    place.write_bytes(data)
    assert load_copy(place) is None
    assert np.array_equal(copies.read(path), expected)
    assert np.array_equal(load_copy(place), expected)  # type: ignore[arg-type]
    place.unlink()
    assert np.array_equal(copies.read(path), expected)
    place.unlink()
    prepare([path], form, tmp_path)
    assert place.exists()


def test_a_changed_file_gets_a_new_copy(tmp_path: Path) -> None:
    path = smooth(tmp_path / "large.png", (200, 260))
    form = ImageFormat(2, (16, 20), 1)
    before = prepare([path], form, tmp_path).read(path)
    smooth(path, (200, 262), seed=1)
    after = prepare([path], form, tmp_path)
    assert not np.array_equal(after.read(path), before)
    assert np.array_equal(after.read(path), read_for(form, path))


def test_deep_images_are_scaled_and_kept_as_half_precision(tmp_path: Path) -> None:
    array = np.linspace(1000, 3000, 30 * 40).reshape(30, 40).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "deep.png"), array)
    form = ImageFormat(2, (30, 40), 1)
    copies = prepare([tmp_path / "deep.png"], form, tmp_path)
    read = copies.read(tmp_path / "deep.png")
    assert read.dtype == np.float32
    assert read.shape == (30, 40, 1)
    assert np.array_equal(read, read_for(form, tmp_path / "deep.png"))
    assert np.array_equal(read, read.astype(np.float16))
    low, high = np.percentile(array, (0.5, 99.5))
    np.testing.assert_allclose(read[..., 0], np.clip((array - low) / (high - low), 0, 1), atol=3e-4)
    full = read_for(replace(form, scaling="full_range"), tmp_path / "deep.png")
    np.testing.assert_allclose(full[..., 0], array / 65535, atol=3e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_copy_is_exact(tmp_path: Path, dtype: Any) -> None:
    array = np.random.default_rng(0).integers(0, 200, (9, 7, 5, 3)).astype(dtype) / (1 if dtype == np.uint8 else 256)
    array = array.astype(dtype)
    (tmp_path / "ab").mkdir()
    save_copy(tmp_path / "ab" / "abc", array)
    found = load_copy(tmp_path / "ab" / "abc")
    assert found is not None
    assert found.dtype == dtype
    assert np.array_equal(found, array)
    assert load_copy(tmp_path / "none") is None


def test_large_jpegs_are_decoded_small(tmp_path: Path) -> None:
    path = smooth(tmp_path / "photo.jpg", (640, 800, 3))
    # 16 pixels are wanted, 32 kept: an eighth of 640 is 80
    array = read_for(ImageFormat(2, (16, 16), 3), path)
    assert array.shape == (32, 40, 3)
    whole = cv2.resize(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), (40, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(array.astype(int) - whole).mean() < 3
    array = read_for(ImageFormat(2, (100, 100), 3), path)
    assert array.shape == (200, 250, 3)  # 6.4 times as large
    array = read_for(ImageFormat(2, (300, 300), 3), path)
    assert array.shape == (640, 800, 3)


def test_windows_are_for_hounsfield_units(tmp_path: Path) -> None:
    import nibabel

    volume = np.linspace(-1000, 1000, 6 * 8 * 10).reshape(6, 8, 10).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "ct.nii.gz")
    array = read_for(ImageFormat(3, (10, 8, 6), 1, window=(40.0, 400.0)), tmp_path / "ct.nii.gz")
    assert array.shape == (10, 8, 6, 1)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array[..., 0], np.clip((volume.transpose(2, 1, 0) + 160) / 400, 0, 1), atol=5e-4)
    with pytest.raises(DataError, match="not Hounsfield units"):
        read_for(ImageFormat(2, (12, 10), 3, window=(40.0, 400.0)), picture(tmp_path / "a.png", 0))
    with pytest.raises(DataError, match="is a picture, but the set is of volumes"):
        read_for(ImageFormat(3, (10, 8, 6), 1), picture(tmp_path / "a.png", 0))


def test_volumes_become_small_before_they_are_augmented(tmp_path: Path) -> None:
    import nibabel

    rng = np.random.default_rng(0)
    rows = []
    for i in range(4):
        path = tmp_path / f"v{i}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(rng.normal(size=(16, 16, 12)).astype(np.float32), np.eye(4)), path)
        rows.append(Sample(f"v{i}", (path,), (i % 2,), f"v{i}"))
    samples = SampleSet("volumes", tmp_path, tuple(rows), (Target("y", ("0", "1")),))
    settings = Given(samples=samples, store=str(tmp_path / "store"), shares=(0.5, 0.5, 0), image_size=8)
    data, plan, _ = open_module(settings)
    assert plan.image_size == (8, 8, 8)
    assert plan.spatial_dims == 3
    batch = next(data.train_batches())
    assert batch["image"].shape == (plan.batch_size, 1, 8, 8, 8)
    assert len(data.copies.copied) == 4


def test_arrays_of_one_file_are_read_as_they_are(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "mini.npz", train_images=images)
    refs: list[ImageRef] = [ArrayItem(tmp_path / "mini.npz", "train_images", i) for i in range(6)]
    copies = prepare(refs, ImageFormat(2, (28, 28), 1), tmp_path)
    assert not copies.copied
    assert len(set(copies.digests.values())) == 6
    assert np.array_equal(copies.read(refs[3])[..., 0], images[3])


def test_two_runs_that_prepare_at_once_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[ImageRef] = [smooth(tmp_path / f"{i}.png", (200, 220), seed=i) for i in range(6)]
    decoded: list[ImageRef] = []

    def counted(form: ImageFormat, ref: ImageRef) -> np.ndarray:
        decoded.append(ref)
        return read_for(form, ref)

    monkeypatch.setattr("medtrain.data.images.copies.read_for", counted)
    form = ImageFormat(2, (16, 16), 1)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: prepare(paths, form, tmp_path), range(2))
    assert sorted(map(str, decoded)) == sorted(map(str, paths))
    assert first.copied == second.copied
    assert first.digests == second.digests


def test_only_what_is_new_is_told(tmp_path: Path) -> None:
    paths: list[ImageRef] = [smooth(tmp_path / f"{i}.png", (40, 40), seed=i) for i in range(3)]
    form = ImageFormat(2, (16, 16), 1)
    told: list[tuple[int, int, str]] = []

    def note(done: int, total: int, name: str) -> None:
        told.append((done, total, name))

    prepare(paths[:2], form, tmp_path, progress=note)
    assert told == [(1, 2, "0.png"), (2, 2, "1.png")]
    told.clear()
    found = prepare(paths, form, tmp_path, progress=note)
    assert told == [(3, 3, "2.png")]
    assert found.case_ids == ("0.png", "1.png", "2.png")


def test_annotations_are_of_single_images(tmp_path: Path) -> None:
    base = small_set(tmp_path, 6)
    rows = tuple(replace(s, images=s.images * 2, annotation=tmp_path / "s00.png") for s in base.samples)
    samples = replace(base, samples=rows, view_names=("u", "v"))
    with pytest.raises(ConfigError, match="annotations are of single images"):
        open_module(Given(samples=samples, store=str(tmp_path / "store")))


def annotated(root: Path) -> tuple[Given, list[Sample]]:
    """Four samples with masks, two with boxes."""
    base = small_set(root, 6)
    rows = []
    for i, sample in enumerate(base.samples):
        mask = root / "masks" / f"m{i}.png"
        rows.append(replace(sample, annotation=picture(mask, i, (12, 10)) if i < 4 else Box(1, 2, 5, 6)))
    return Given(samples=replace(base, samples=tuple(rows)), store=str(root / "store"), batch_size=2), rows


def checks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is checked from now on, with the name of the thread."""
    found: list[tuple[str, str]] = []

    def noted(annotation: Annotation, want: tuple[int, int], ref: ImageRef) -> np.ndarray:
        found.append((Path(str(ref)).name, threading.current_thread().name))
        return read_annotation(annotation, want, ref)

    monkeypatch.setattr("medtrain.data.images.annotations.read_annotation", noted)
    return found


@pytest.mark.parametrize("cache", [True, False])
def test_annotations_are_checked_in_threads_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    settings, rows = annotated(tmp_path)
    settings = replace(settings, cache=cache)
    found = checks(monkeypatch)
    open_module(settings)
    assert sorted(name for name, _ in found) == [f"s0{i}.png" for i in range(6)]
    assert all(thread.startswith("images") for _, thread in found)
    found.clear()
    monkeypatch.setattr("medtrain.data.images.copies.read_for", pytest.fail)  # nor are images decoded for their size
    open_module(settings)
    assert found == []
    monkeypatch.undo()
    found = checks(monkeypatch)
    picture(tmp_path / "masks" / "m1.png", 9, (12, 10))  # another mask
    picture(tmp_path / "s02.png", 50)  # another image
    rows[4] = replace(rows[4], annotation=Box(1, 2, 5, 7))
    open_module(replace(settings, samples=replace(settings.samples, samples=tuple(rows))))
    assert sorted(name for name, _ in found) == ["s01.png", "s02.png", "s04.png"]


def test_the_size_of_an_image_is_read_from_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, _ = annotated(tmp_path)
    open_module(replace(settings, cache=True))
    decoded: list[ImageRef] = []

    def counted(form: ImageFormat, ref: ImageRef) -> np.ndarray:
        decoded.append(ref)
        return read_for(form, ref)

    (checked,) = (tmp_path / "store").rglob("annotations.json")
    checked.write_text("damaged")
    monkeypatch.setattr("medtrain.data.images.copies.read_for", counted)
    open_module(replace(settings, cache=True))
    assert decoded == []
    assert len(json.loads(checked.read_text())) == 6


def test_annotations_that_cannot_be_used_are_told_at_every_start(tmp_path: Path) -> None:
    settings, _ = annotated(tmp_path)
    picture(tmp_path / "masks" / "m1.png", 1, (50, 10))
    (tmp_path / "masks" / "m2.png").unlink()
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            open_module(settings)
        assert sorted(Path(problem.where).name for problem in caught.value.problems) == ["m1.png", "m2.png"]
