import json
from pathlib import Path

import numpy as np
import pytest

from medtrain.data.fingerprint import Fingerprint, fingerprint_cases, make_fingerprint
from medtrain.data.io.nifti import Volume
from medtrain.data.scan import CaseScan, ForegroundIntensities, scan_cases, scan_volume
from medtrain.data.volume_data import VolumeData
from medtrain.errors import DataError, MedtrainError
from tests.data.small_data import grid_of, small_dataset


def volume(image: np.ndarray, spacing: tuple[float, float, float] = (3.0, 2.0, 1.0)) -> Volume:
    return Volume(image, spacing, grid_of(image.shape[1:], spacing))


def test_scan_by_hand() -> None:
    image = np.zeros((2, 4, 4, 4), dtype=np.int16)
    image[0, 1:3] = 5  # non-zero box: 2 x 4 x 4
    image[1, 1, 0, :3] = (10, 20, 30)
    classes = np.zeros((4, 4, 4), dtype=np.uint8)
    classes[1, 0, :4] = (1, 2, 2, 3)  # 3 is the ignore index here
    scan = scan_volume(volume(image), classes, num_classes=3)
    assert (scan.shape, scan.cropped_shape, scan.spacing) == ((4, 4, 4), (2, 4, 4), (3.0, 2.0, 1.0))
    assert scan.class_voxels == (60, 1, 2)
    assert scan.bytes_per_voxel == 4
    first, second = scan.foreground
    assert (first.mean, first.std, set(first.quantiles)) == (5.0, 0.0, {5})
    assert second.mean == pytest.approx(20)
    assert second.std == pytest.approx(np.std([10, 20, 30]))
    assert (second.quantiles[0], second.quantiles[500], second.quantiles[-1]) == (10, 20, 30)


def test_scans_survive_json() -> None:
    image = np.random.default_rng(0).normal(size=(1, 5, 6, 7)).astype(np.float32)
    scan = scan_volume(volume(image), np.ones((5, 6, 7), dtype=np.uint8), 2)
    assert CaseScan.from_json(json.loads(json.dumps(scan.to_json()))) == scan


def test_pooled_intensities_are_those_of_all_voxels_when_cases_are_equally_large(rng: np.random.Generator) -> None:
    cases = [rng.normal(100 * (i + 1), 20, (1, 30, 30, 30)).astype(np.float32) for i in range(3)]
    ones = np.ones((30, 30, 30), dtype=np.uint8)
    scans = {str(i): scan_volume(volume(image), ones, 2) for i, image in enumerate(cases)}
    channel = make_fingerprint(scans, ["0", "1", "2"]).channels[0]
    everything = np.concatenate([image.ravel() for image in cases]).astype(np.float64)
    assert channel.mean == pytest.approx(everything.mean(), rel=1e-6)
    assert channel.std == pytest.approx(everything.std(), rel=1e-6)
    assert (channel.minimum, channel.maximum) == (everything.min(), everything.max())
    low, median, high = np.percentile(everything, (0.5, 50, 99.5))
    assert channel.percentile_00_5 == pytest.approx(low, abs=0.5)
    assert channel.median == pytest.approx(median, abs=0.5)
    assert channel.percentile_99_5 == pytest.approx(high, abs=0.5)


def scan(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    *,
    whole: tuple[int, int, int] | None = None,
    foreground: bool = True,
) -> CaseScan:
    intensities = (ForegroundIntensities(0.0, 1.0, (-1.0, 0.0, 1.0)),) if foreground else ()
    return CaseScan(whole or shape, shape, spacing, 2, (10, 5), intensities)


def test_only_the_given_cases_count() -> None:
    scans = {
        "a": scan((10, 20, 30), (1, 1, 1), whole=(20, 20, 30)),
        "b": scan((30, 40, 50), (2, 1, 1)),
        "validation": scan((999, 999, 999), (9, 9, 9)),
    }
    fingerprint = make_fingerprint(scans, ["a", "b"])
    assert fingerprint.shapes == ((10, 20, 30), (30, 40, 50))
    assert fingerprint.relative_crop == 0.75
    assert fingerprint.class_voxels == (20, 10)
    assert fingerprint.median_shape((1, 1, 1)) == (35.0, 30.0, 40.0)  # of (10, 20, 30) and (60, 40, 50)
    assert fingerprint.median_shape((2, 2)) == (20.0, 15.0, 20.0)  # slices as they are
    assert Fingerprint.from_json(json.loads(json.dumps(fingerprint.to_json()))) == fingerprint


def test_nothing_to_learn_from() -> None:
    scans = {"a": scan((10, 20, 30), (1, 1, 1), foreground=False)}
    with pytest.raises(MedtrainError, match="none of the 1 training cases has a labelled voxel"):
        make_fingerprint(scans, ["a"])
    with pytest.raises(MedtrainError, match="the training part of the split is empty"):
        make_fingerprint(scans, [])


def test_scans_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small_dataset(tmp_path / "raw", cases=3)
    settings = VolumeData(store=str(tmp_path / "store"))
    seen: list[str] = []
    first = scan_cases(dataset, settings, progress=lambda done, total, case_id: seen.append(f"{done}/{total}"))
    assert seen == ["1/3", "2/3", "3/3"]

    monkeypatch.setattr("medtrain.data.scan.scan_volume", None)  # a second look would fail
    assert scan_cases(dataset, settings, workers=1) == first
    assert scan_cases(dataset, settings, case_ids={"case_1"}) == {"case_1": first["case_1"]}
    fingerprint = fingerprint_cases(dataset, ["case_0", "case_2"], settings)
    assert fingerprint.num_cases == 2

    monkeypatch.undo()
    for path in (tmp_path / "store" / "scans").iterdir():
        path.write_text(path.read_text()[:50])  # cut off: measured again
    assert scan_cases(dataset, settings) == first


def test_all_bad_files_are_named_at_once(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "raw", cases=4)
    cut, missing = dataset.cases[0].images[0], dataset.cases[2].label
    assert missing is not None
    cut.write_bytes(cut.read_bytes()[:300])
    missing.unlink()
    with pytest.raises(DataError) as error:
        scan_cases(dataset, VolumeData(store=str(tmp_path / "store")))
    problems = {Path(problem.where).name: problem.message for problem in error.value.problems}
    assert set(problems) == {"case_0_image.nii.gz", "case_2_label.nii.gz"}
    assert "truncated" in problems["case_0_image.nii.gz"]
    assert problems["case_2_label.nii.gz"] == "no such file"
