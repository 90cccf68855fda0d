from __future__ import annotations

import dataclasses
import inspect
import itertools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medtrain.data.image_check import inspect_images
from medtrain.data.image_sets import read_sample_image
from medtrain.data.images.settings import ImageData
from medtrain.data.sample import Sample, SampleSet, Target
from medtrain.data.sources.csv import CsvData
from medtrain.data.sources.drawing import zone_centres
from medtrain.data.sources.phantom import TablePhantom
from medtrain.data.sources.phantom_bags import PhantomBags
from medtrain.data.sources.phantom_images import CLASSES, PhantomImages
from medtrain.data.sources.phantom_multimodal import PhantomMultimodal
from medtrain.data.sources.phantom_survival import PhantomSurvival
from medtrain.data.sources.phantom_views import PHASES, PhantomViews
from medtrain.data.sources.phantom_zones import ZONES, PhantomZones
from medtrain.errors import UsageError
from medtrain.metrics.survival import concordance

KINDS: list[tuple[type[TablePhantom], dict[str, Any]]] = [
    (PhantomImages, {}),
    (PhantomImages, {"labels": "multilabel", "annotated": 0.5}),
    (PhantomZones, {}),
    (PhantomMultimodal, {}),
    (PhantomBags, {"max_bag": 12}),
    (PhantomViews, {"volume_shape": (8, 9, 10)}),
    (PhantomSurvival, {}),
]


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS] + [CsvData])
def test_no_setting_hides_one_that_all_sources_have(kind: type[ImageData]) -> None:
    own: set[str] = set()
    for owner in set(kind.__mro__) - {ImageData, object}:
        own |= set(inspect.get_annotations(owner))
    assert own & {field.name for field in dataclasses.fields(ImageData)} <= {"root"}


def pixels(sample: Sample, place: int = 0) -> np.ndarray:
    ref = sample.images[place]
    assert ref is not None
    return read_sample_image(ref).array[0].astype(np.float64)


def zone_pixels(picture: np.ndarray, zone: str) -> float:
    row, column = (round(share * len(picture)) for share in zone_centres()[zone])
    return float(picture[row - 2 : row + 3, column - 2 : column + 3].mean())


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_the_same_parameters_give_the_same_files(tmp_path: Path, kind: type[TablePhantom], settings: Any) -> None:
    def files(root: Path, **changes: Any) -> dict[str, bytes]:
        data = kind(root=str(root), num_samples=8, **settings, **changes)  # type: ignore[call-arg]
        data.read()
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    one, two = files(tmp_path / "a"), files(tmp_path / "b")
    assert one == two
    other = files(tmp_path / "c", phantom_seed=1)
    assert other["labels.csv"] != one["labels.csv"]
    images = [name for name in one if name.endswith((".png", ".nii.gz")) and name.startswith(("images", "volumes"))]
    assert all(one[name] != other.get(name) for name in images)
    assert files(tmp_path / "a", phantom_seed=1) == other  # other parameters replace the files
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_images_are_whole_and_none_comes_twice(tmp_path: Path, kind: type[TablePhantom], settings: Any) -> None:
    found = kind(root=str(tmp_path / "p"), num_samples=12, **settings).read()  # type: ignore[call-arg]
    report = inspect_images(found, decode=True)
    assert report.problems == ()
    images = [report.digests[ref] for sample in found.samples for ref in sample.images if ref is not None]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_files_that_can_be_made_again_are_not_synced_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[TablePhantom], settings: Any
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    kind(root=str(tmp_path / "p"), num_samples=8, **settings).read()  # type: ignore[call-arg]
    assert len(synced) <= 2  # hundreds of volumes took half a minute


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").touch()
    with pytest.raises(UsageError, match="holds files that are not this phantom's"):
        PhantomImages(root=str(tmp_path)).read()


def test_findings_can_be_seen(tmp_path: Path) -> None:
    found = PhantomImages(root=str(tmp_path / "p"), num_samples=160).read()
    assert found.targets == (Target("finding", CLASSES),)
    (counts,) = found.class_counts()
    assert counts is not None
    assert counts[0] == max(counts)
    assert min(counts) >= 20
    assert max(Counter(sample.group for sample in found.samples).values()) == 3
    lungs = [np.mean([zone_pixels(pixels(sample), zone) for zone in ZONES]) for sample in found.samples]
    brightness = [float(np.mean([v for v, s in zip(lungs, found.samples) if s.targets == (k,)])) for k in range(4)]
    assert brightness[0] == min(brightness)
    assert min(brightness[2:]) > brightness[0] + 10


def test_findings_may_be_unlabelled(tmp_path: Path) -> None:
    found = PhantomImages(root=str(tmp_path / "p"), num_samples=100, labels="multilabel", unlabelled=0.3).read()
    assert [target.target_name for target in found.targets] == ["nodule", "infiltrate", "effusion"]
    values = [value for sample in found.samples for value in sample.targets]
    assert set(values) == {0, 1, None}
    assert values.count(None) / len(values) == pytest.approx(0.3, abs=0.08)


def test_masks_cover_what_is_to_be_seen(tmp_path: Path) -> None:
    found = PhantomImages(root=str(tmp_path / "p"), num_samples=40, annotated=1.0).read()
    for sample in found.samples:
        assert (sample.annotation is None) == (sample.targets == (0,))
        if sample.targets == (1,):
            assert isinstance(sample.annotation, Path)
            mask = cv2.imread(str(sample.annotation), cv2.IMREAD_GRAYSCALE)
            assert mask is not None
            assert set(np.unique(mask)) == {0, 255}
            picture = pixels(sample)
            assert picture[mask == 255].mean() > picture[mask == 0].mean() + 20


@pytest.mark.parametrize("labels", ["grades", "number"])
def test_grades_and_numbers_follow_the_clouds(tmp_path: Path, labels: Any) -> None:
    found = PhantomImages(root=str(tmp_path / "p"), num_samples=60, labels=labels).read()
    truth = [float(sample.targets[0] or 0) for sample in found.samples]
    bright = [np.mean([zone_pixels(pixels(sample), zone) for zone in ZONES]) for sample in found.samples]
    assert np.corrcoef(truth, bright)[0, 1] > 0.95
    if labels == "grades":
        assert found.targets[0].classes == ("0", "1", "2", "3", "4")
        assert truth.count(0.0) > len(truth) / 3


def test_a_zone_is_as_bright_as_its_grade_says(tmp_path: Path) -> None:
    found = PhantomZones(root=str(tmp_path / "p"), num_samples=80).read()
    assert [target.target_name for target in found.targets] == list(ZONES)
    assert ZONES[:2] == ("right_sup", "left_sup")
    assert {target.classes for target in found.targets} == {("0", "1", "2", "3", "unknown")}
    levels: dict[int, list[float]] = {grade: [] for grade in range(5)}
    for sample in found.samples:
        picture = pixels(sample)
        for zone, grade in zip(ZONES, sample.targets):
            assert grade is not None
            levels[int(grade)].append(zone_pixels(picture, zone))
    means = [float(np.mean(levels[grade])) for grade in range(5)]
    assert means == sorted(means)  # the opaque box of unknown zones is the brightest
    assert means[4] > 240
    share = len(levels[4]) / (80 * 6)
    assert share == pytest.approx(0.1, abs=0.04)


def test_left_and_right_are_the_patients(tmp_path: Path) -> None:
    """The patient's right lung is on the left of the picture, and the heart on its right: a flip changes the truth."""
    centres = zone_centres()
    assert all(centres[f"right_{place}"][1] < 0.5 < centres[f"left_{place}"][1] for place in ("sup", "mid", "inf"))
    found = PhantomZones(root=str(tmp_path / "p"), num_samples=40, unknown=0).read()
    right, left = ([] for _ in range(2))  # type: tuple[list[float], list[float]]
    for sample in found.samples:
        picture = pixels(sample)
        right.append(picture[30:50, 26:32].mean())
        left.append(picture[30:50, 32:38].mean())
    assert np.mean(left) > np.mean(right) + 20


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> SampleSet:
    return PhantomMultimodal(root=str(tmp_path_factory.mktemp("multimodal") / "p"), num_samples=400, missing=0).read()


def clouded(sample: Sample) -> float:
    picture = pixels(sample)
    return max(float(picture[9:20, columns].mean()) for columns in (slice(6, 13), slice(19, 26)))


def test_neither_picture_nor_table_tells_alone_but_both_do(multimodal: SampleSet) -> None:
    ill = np.array([sample.targets[0] for sample in multimodal.samples])
    marker = np.array([sample.numeric[0] for sample in multimodal.samples], dtype=float)
    cloud = np.array([clouded(sample) for sample in multimodal.samples])
    assert abs(roc_auc_score(ill, marker) - 0.5) < 0.02
    assert abs(roc_auc_score(ill, cloud) - 0.5) < 0.05
    both = ((marker > 2) != (cloud > np.median(cloud))).astype(float)
    assert roc_auc_score(ill, both) > 0.95


def test_a_model_of_one_modality_is_at_chance_in_any_split(multimodal: SampleSet) -> None:
    """Whatever is learnt from rows, each comes as often with one answer as with the other, within every patient."""
    for _, visits in itertools.groupby(multimodal.samples, key=lambda sample: sample.group):
        rows = [(float(v.numeric[0] or 0) > 2, *v.numeric[1:], *v.categorical, v.targets[0]) for v in visits]
        assert len(rows) == 4
        for row in rows:
            assert (*row[:-1], 1 - int(row[-1] or 0)) in rows


def test_modalities_may_be_missing(tmp_path: Path) -> None:
    found = PhantomMultimodal(root=str(tmp_path / "p"), num_samples=200, missing=0.2).read()
    no_image = sum(sample.images == (None,) for sample in found.samples)
    no_marker = sum(sample.numeric[0] is None for sample in found.samples)
    assert no_image / 200 == pytest.approx(0.2, abs=0.08)
    assert no_marker / 200 == pytest.approx(0.2, abs=0.08)
    assert any(sample.categorical == (None,) for sample in found.samples)
    assert len(list(found.files())) == 200 - no_image == len(list((tmp_path / "p" / "images").iterdir()))


def test_bags_and_their_planted_instances(tmp_path: Path) -> None:
    data = PhantomBags(root=str(tmp_path / "p"), num_samples=24)
    found, truth = data.read(), data.instance_truth()
    assert found.bags
    assert list(truth) == [sample.sample_id for sample in found.samples]
    sizes = [len(sample.images) for sample in found.samples]
    assert [len(planted) for planted in truth.values()] == sizes
    assert 5 <= min(sizes) < 12
    assert 80 < max(sizes) <= 200
    assert sizes[::2] == sizes[1::2]  # the size tells nothing
    assert [int(planted.any()) for planted in truth.values()] == [sample.targets[0] for sample in found.samples]
    assert [int(planted.sum()) for planted in list(truth.values())[1::2]] == [-(-size // 25) for size in sizes[1::2]]
    # instances in the order of their rows; planted ones have a dark middle
    darkest = [
        [np.sort(pixels(sample, place)[5:15, 5:15].ravel())[:5].mean() for place in range(min(60, len(sample.images)))]
        for sample in found.samples
    ]
    flat = np.concatenate([planted[:60] for planted in truth.values()])
    assert roc_auc_score(flat, -np.concatenate(darkest)) > 0.99


@pytest.mark.parametrize("limits", [(9, 5), (5, 4)])
def test_bags_of_impossible_sizes(tmp_path: Path, limits: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"data\.max_bag=\d is below data\.min_bag=\d"):
        PhantomBags(root=str(tmp_path / "p"), min_bag=limits[0], max_bag=limits[1]).read()
    assert os.listdir(tmp_path) == []


def test_phases_tell_together_what_none_tells_alone(tmp_path: Path) -> None:
    data = PhantomViews(root=str(tmp_path / "p"), num_samples=60, missing=0, volume_shape=(8, 16, 16))
    found = data.read()
    assert found.view_names == PHASES
    assert found.targets == (Target("lesion", ("benign", "malignant")),)

    def contrast(sample: Sample, place: int) -> float:
        volume = pixels(sample, place)
        assert volume.shape == (8, 16, 16)
        middle = volume[3:5, 6:10, 6:10]  # within the lesion of nearly everybody
        return float(middle.mean())

    malignant = [sample.targets[0] for sample in found.samples]
    phases = np.array([[contrast(sample, place) for place in range(3)] for sample in found.samples])
    alone = [roc_auc_score(malignant, sign * phases[:, place]) for place, sign in ((0, 1), (1, 1), (2, -1))]
    washout = roc_auc_score(malignant, phases[:, 1] - phases[:, 2])
    assert max(alone) < 0.9 < washout


def test_phases_may_be_missing_but_never_all(tmp_path: Path) -> None:
    data = PhantomViews(root=str(tmp_path / "p"), num_samples=40, missing=0.7, volume_shape=(8, 8, 8))
    images = [sample.images for sample in data.read().samples]
    assert all(any(image is not None for image in views) for views in images)
    missing = sum(image is None for views in images for image in views)
    assert missing / 120 == pytest.approx(0.6, abs=0.12)


def test_risk_shortens_survival(tmp_path: Path) -> None:
    found = PhantomSurvival(root=str(tmp_path / "p"), num_samples=200).read()
    assert found.targets == (Target("time", None), Target("event", None))
    time, event = (np.array([sample.targets[i] for sample in found.samples], dtype=float) for i in range(2))
    age = np.array([sample.numeric[0] for sample in found.samples], dtype=float)
    tumour = np.array([(pixels(sample) > 225).mean() for sample in found.samples])
    assert time.min() > 0
    assert 0.4 < event.mean() < 0.9
    assert concordance(time, event, age).index > 0.53
    assert concordance(time, event, tumour).index > 0.7
    early = PhantomSurvival(root=str(tmp_path / "q"), num_samples=200, follow_up=12).read()
    assert np.mean([sample.targets[1] for sample in early.samples]) < event.mean() - 0.2


def test_the_table_of_a_phantom_is_one_that_csv_reads(tmp_path: Path) -> None:
    root = tmp_path / "p"
    PhantomBags(root=str(root), num_samples=8, max_bag=9).read()
    data = CsvData(path=str(root / "labels.csv"), images=("image",), bag="bag", targets="positive")
    assert len(data.read().samples) == 8
