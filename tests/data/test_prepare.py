import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medtrain.data.case import Case, Dataset
from medtrain.data.check import inspect_dataset
from medtrain.data.digests import DigestCache
from medtrain.data.io.nifti import read_image, read_label
from medtrain.data.labels import LabelMap
from medtrain.data.plan import ChannelNormalization
from medtrain.data.prepare import MAX_LOCATIONS, foreground_locations, prepare
from medtrain.data.scan import RECENT, Recent, read_case, scan_cases
from medtrain.data.volume_data import VolumeData
from medtrain.errors import DataError, MedtrainError
from tests.data.small_data import small_dataset, small_plan


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return small_dataset(tmp_path / "raw")


@pytest.fixture
def settings(tmp_path: Path) -> VolumeData:
    return VolumeData(store=str(tmp_path / "store"))


def content(root: Path) -> dict[str, bytes]:
    """Every file of the prepared cases but the descriptions, which hold times."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted((root / "cases").rglob("*"))
        if path.is_file() and path.name != "case.json"
    }


def test_without_resampling_the_store_holds_the_scans(dataset: Dataset, settings: VolumeData) -> None:
    store = prepare(dataset, settings, small_plan())
    assert store.case_ids == tuple(case.case_id for case in dataset.cases)
    for source in dataset.cases:
        case = store.case(source.case_id)
        image, label = read_image(source.images).array, read_label(source.label).array  # type: ignore[arg-type]
        np.testing.assert_array_equal(case.read_image(), image)
        np.testing.assert_array_equal(case.read_label(), label)
        np.testing.assert_array_equal(case.source_label(), label)
        assert case.read_image().dtype == np.int16
        assert case.stats[0].mean == pytest.approx(image.mean())
        assert case.stats[0].std == pytest.approx(image.std())
        assert case.case is source
        for index in (1, 2):
            np.testing.assert_array_equal(case.foreground(index), np.argwhere(label == index))


def test_resampled_cases_keep_their_source_label(dataset: Dataset, settings: VolumeData) -> None:
    store = prepare(dataset, settings, small_plan(spacing=(2.0, 1.0, 0.5)))
    case = store.case("case_0")
    assert (case.shape, case.spacing) == ((6, 16, 28), (2.0, 1.0, 0.5))
    source = read_label(dataset.cases[0].label).array  # type: ignore[arg-type]
    np.testing.assert_array_equal(case.source_label(), source)
    assert case.read_label().shape == case.read_image().shape[1:] == case.shape
    points = case.foreground(1)
    assert (case.read_label()[tuple(points.T)] == 1).all()


def test_a_second_run_reads_no_scan(dataset: Dataset, settings: VolumeData, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(dataset, settings, small_plan())
    files = content(Path(settings.store))
    monkeypatch.setattr("medtrain.data.prepare.read_case", None)
    monkeypatch.setattr("medtrain.data.scan.read_case", None)
    calls: list[str] = []
    second = prepare(dataset, settings, small_plan(), progress=lambda done, total, case_id: calls.append(case_id))
    assert (second.keys, calls) == (first.keys, [])
    assert content(Path(settings.store)) == files


def test_what_was_measured_is_not_read_again(
    dataset: Dataset, settings: VolumeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {case.case_id for case in dataset.cases[:3]}
    scan_cases(dataset, settings, case_ids=cases)
    read: list[str] = []

    def counting(case: Case, *others: Any) -> Any:
        read.append(case.case_id)
        return read_case(case, *others)

    monkeypatch.setattr("medtrain.data.prepare.read_case", counting)
    monkeypatch.setattr("medtrain.data.scan.read_case", counting)
    store = prepare(dataset, settings, small_plan())
    assert sorted(read) == sorted(case.case_id for case in dataset.cases[3:])
    for case in dataset.cases:
        np.testing.assert_array_equal(store.case(case.case_id).read_image(), read_image(case.images).array)
    assert RECENT.take(next(iter(store.keys.values()))) is None


def test_what_is_kept_for_preparing_is_limited(dataset: Dataset) -> None:
    labels = LabelMap.from_dataset(dataset, None)
    volume, classes = read_case(dataset.cases[0], dataset, labels)
    size = volume.array.nbytes + classes.nbytes
    recent = Recent(limit=2 * size)
    for key in ("a", "b", "c"):
        recent.keep(key, volume, classes)
    assert recent.take("c") is None
    assert recent.take("a") == (volume, classes)
    assert recent.take("a") is None
    recent.keep("c", volume, classes)
    assert recent.take("c") is not None
    recent.clear()
    assert recent.take("b") is None


def test_folds_and_batches_share_cases_and_what_shapes_them_does_not(dataset: Dataset, settings: VolumeData) -> None:
    keys = prepare(dataset, settings, small_plan()).keys
    assert prepare(dataset, settings, small_plan(batch_size=9, patch_size=(4, 4, 4))).keys == keys
    assert prepare(dataset, settings, small_plan(normalization=ChannelNormalization("none"))).keys == keys
    others = [
        prepare(dataset, settings, small_plan(spacing=(1.0, 1.0, 1.5))).keys,
        prepare(dataset, replace(settings, merge_labels={"organ": ["organ", "tumour"]}), small_plan()).keys,
        prepare(dataset, settings, small_plan(normalization=ChannelNormalization("zscore", nonzero=True))).keys,
    ]
    for other in others:
        assert not set(other.values()) & set(keys.values())
    merged = prepare(dataset, replace(settings, merge_labels={"organ": ["organ", "tumour"]}), small_plan())
    assert merged.contents == prepare(dataset, settings, small_plan(spacing=(1.0, 1.0, 1.5))).contents
    assert set(merged.contents) == set(merged.keys)


def test_a_changed_scan_is_prepared_anew(dataset: Dataset, settings: VolumeData) -> None:
    before = prepare(dataset, settings, small_plan())
    changed, taken = dataset.cases[0].images[0], dataset.cases[2].images[0]
    shutil.copy(taken, changed)  # case_0 and case_2 are equally large
    after = prepare(dataset, settings, small_plan())
    assert after.keys["case_0"] != before.keys["case_0"]
    assert {k: v for k, v in after.keys.items() if k != "case_0"} == {
        k: v for k, v in before.keys.items() if k != "case_0"
    }
    np.testing.assert_array_equal(after.case("case_0").read_image(), after.case("case_2").read_image())


def test_merged_labels_are_merged_in_the_store(dataset: Dataset, settings: VolumeData) -> None:
    merged = replace(settings, merge_labels={"organ": ["organ", "tumour"]})
    case = prepare(dataset, merged, small_plan()).case("case_0")
    assert set(np.unique(case.read_label())) == {0, 1}
    assert set(np.unique(case.source_label())) == {0, 1}
    assert case.class_ids == (1,)


def test_annotated_voxels_are_indexed_where_some_are_ignored(tmp_path: Path, settings: VolumeData) -> None:
    dataset = small_dataset(tmp_path / "sparse", ignore_value=9)
    case = prepare(dataset, settings, small_plan(ignore_index=3)).case("case_0")
    assert (case.read_label()[0] == 3).all()
    assert case.class_ids == (0, 1, 2)
    np.testing.assert_array_equal(case.foreground(0), np.argwhere(case.read_label() != 3))


def test_locations_are_capped_spread_and_repeatable() -> None:
    label = np.ones((40, 40, 40), dtype=np.uint8)
    label[:2] = 0
    labels = LabelMap(("background", "organ"), (0, 1), ((0, 0), (1, 1)))
    found = foreground_locations(label, labels)
    assert list(found) == [1]
    rows = found[1]
    assert (rows.shape, rows.dtype) == ((MAX_LOCATIONS, 3), np.int32)
    assert len({tuple(row) for row in rows.tolist()}) == MAX_LOCATIONS
    assert (label[tuple(rows.T)] == 1).all()
    np.testing.assert_allclose(rows.mean(axis=0), (20.5, 19.5, 19.5), atol=0.5)
    np.testing.assert_array_equal(rows, foreground_locations(label, labels)[1])


def test_two_processes_at_once(dataset: Dataset, settings: VolumeData, repository: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from medtrain.data.volume_data import VolumeData\n"
        "from medtrain.data.prepare import prepare; from tests.data.small_data import small_plan\n"
        "import pickle; dataset, store = pickle.loads(sys.stdin.buffer.read())\n"
        "view = prepare(dataset, VolumeData(store=store), small_plan(spacing=(0.5, 0.5, 0.5)))\n"
        "print(view.data_hash, sum(int(view.case(c).read_image().sum()) for c in view.case_ids))\n"
    )
    import pickle

    start = [
        subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=repository)
        for _ in range(2)
    ]
    sent = pickle.dumps((dataset, settings.store))
    for process in start:
        assert process.stdin is not None
        process.stdin.write(sent)
        process.stdin.close()
        process.stdin = None
    outputs = [process.communicate(timeout=120)[0] for process in start]
    assert [process.returncode for process in start] == [0, 0]
    assert outputs[0] == outputs[1] != b""
    cases = list((Path(settings.store) / "cases").iterdir())
    assert len(cases) == len(dataset.cases)  # nothing temporary is left


def test_what_a_killed_run_left_is_removed_and_completed(
    dataset: Dataset, settings: VolumeData, caplog: pytest.LogCaptureFixture
) -> None:
    complete = prepare(dataset, settings, small_plan())
    files = content(Path(settings.store))
    cases = Path(settings.store) / "cases"
    # killed while writing: a temporary folder of a process that is gone, and a case not there yet
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    victim = cases / complete.keys["case_1"]
    host = os.uname().nodename
    victim.rename(cases / f".{victim.name}.{ended.pid}.0123abcd@{host}.tmp")
    mine = cases / f".{victim.name}.{os.getpid()}.0123abcd@{host}.tmp"
    mine.mkdir()
    with caplog.at_level(logging.INFO):
        prepare(dataset, settings, small_plan())
    assert content(Path(settings.store)) == files
    assert "left behind in the store by a killed run" in caplog.text
    assert mine.is_dir()  # a live process is not disturbed


def test_damaged_cases_are_prepared_anew(
    dataset: Dataset, settings: VolumeData, caplog: pytest.LogCaptureFixture
) -> None:
    store = prepare(dataset, settings, small_plan())
    files = content(Path(settings.store))
    cut = Path(settings.store) / "cases" / store.keys["case_0"] / "image.b2nd"
    cut.write_bytes(cut.read_bytes()[:100])
    (Path(settings.store) / "cases" / store.keys["case_3"] / "case.json").write_text('{"format"')
    again: list[str] = []
    with caplog.at_level(logging.WARNING):
        prepare(dataset, settings, small_plan(), progress=lambda done, total, case_id: again.append(case_id))
    assert sorted(again) == ["case_0", "case_3"]
    assert content(Path(settings.store)) == files
    assert "the prepared case case_0 is damaged; it is prepared anew" in caplog.text


def test_a_bad_case_is_named_and_leaves_nothing(dataset: Dataset, settings: VolumeData) -> None:
    image = dataset.cases[2].images[0]
    image.write_bytes(image.read_bytes()[:400])
    with pytest.raises(DataError, match=r"case_2_image.nii.gz: truncated"):
        prepare(dataset, settings, small_plan())
    assert not [path for path in (Path(settings.store) / "cases").iterdir() if path.name.startswith(".")]


def _flip_header(path: Path) -> None:
    """The same voxels, the first axis said to point the other way: read in the canonical frame, they are mirrored."""
    file = nib.load(path)
    affine = file.affine @ np.diag([-1.0, 1.0, 1.0, 1.0])
    affine[0, 3] = (file.shape[0] - 1) * file.affine[0, 0]
    nib.save(nib.Nifti1Image(np.asanyarray(file.dataobj).copy(), affine), path)


def test_labels_whose_headers_contradict_their_images(dataset: Dataset, settings: VolumeData) -> None:
    """The same box in space, so that the shapes agree in the canonical frame too."""
    for index in (1, 3):
        assert dataset.cases[index].label is not None
        _flip_header(dataset.cases[index].label)
    for work in (lambda: scan_cases(dataset, settings), lambda: prepare(dataset, settings, small_plan())):
        with pytest.raises(DataError) as error:
            work()
        assert [(Path(problem.where).name, problem.message) for problem in error.value.problems] == [
            (f"case_{i}_label.nii.gz", f"orientation LAS differs from RAS of the image case_{i}_image.nii.gz")
            for i in (1, 3)
        ]
    assert [problem.message for problem in error.value.problems] == [
        problem.message for problem in inspect_dataset(dataset).problems
    ]


def test_a_case_that_contradicts_itself(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "raw", cases=2)
    labels = LabelMap.from_dataset(dataset)
    small, large = dataset.cases
    with pytest.raises(DataError, match="shape 14 x 16 x 13 differs from 14 x 16 x 12 of the image case_0_image"):
        read_case(replace(small, label=large.label), dataset, labels)
    with pytest.raises(DataError, match="1 channels where 2 are declared"):
        read_case(small, replace(dataset, channel_names=("T1", "T2")), labels)
    declared = replace(dataset, labels={"background": 0, "organ": 1})
    fewer = LabelMap.from_dataset(declared)
    with pytest.raises(DataError, match=r"case_0_label.nii.gz: undeclared label values 2 \(\d+ voxels\)"):
        read_case(small, declared, fewer)


def test_too_little_disk_is_said_before_writing(
    dataset: Dataset, settings: VolumeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medtrain.data.prepare.shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
    with pytest.raises(
        MedtrainError, match=r"preparing 5 cases in .*store takes about 0.0 MiB, but only 0.0 MiB"
    ) as error:
        prepare(dataset, settings, small_plan())
    assert error.value.hint == "free some space, or set data.store to a folder on another disk"
    assert not list((Path(settings.store) / "cases").iterdir())


def test_a_disk_that_fills_up_gives_one_sentence(
    dataset: Dataset, settings: VolumeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, **parts: object) -> None:
        (folder / "image.b2nd").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("medtrain.data.prepare.write_case", full)
    with pytest.raises(MedtrainError, match="the disk is full"):
        prepare(dataset, settings, small_plan())
    assert not list((Path(settings.store) / "cases").iterdir())


def test_digests_are_remembered_by_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "scan"
    file.write_bytes(b"abc")
    os.utime(file, ns=(0, 1000))
    cache = DigestCache(tmp_path / "digests.json")
    digest = cache.digest(file)
    cache.save()
    file.write_bytes(b"xyz")
    os.utime(file, ns=(0, 1000))
    assert DigestCache(tmp_path / "digests.json").digest(file) == digest  # same size and time: not read
    os.utime(file, ns=(0, 2000))
    other = DigestCache(tmp_path / "digests.json")
    assert other.digest(file) != digest
    entry = json.loads((tmp_path / "digests.json").read_text())
    assert entry == {str(file): [3, 1000, digest]}
    (tmp_path / "digests.json").write_text("{")
    assert DigestCache(tmp_path / "digests.json").digest(file) == other.digest(file)


def test_saving_digests_keeps_those_of_another_process(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "ab"]
    for file in files:
        file.write_text(file.name)
    caches = [DigestCache(tmp_path / "digests.json") for _ in files]
    for cache, file in zip(caches, files):
        cache.digest(file)
        cache.save()
    assert set(json.loads((tmp_path / "digests.json").read_text())) == {str(file) for file in files}


@pytest.mark.data
def test_real_scans(hippocampus: Path, tmp_path: Path) -> None:
    from medtrain.data.fingerprint import fingerprint_cases
    from medtrain.data.plan import make_plan
    from medtrain.registry import build

    settings = build("data", {"name": "msd", "root": str(hippocampus), "store": str(tmp_path)})
    dataset = settings.discover()
    dataset = replace(dataset, cases=dataset.cases[:12])
    fingerprint = fingerprint_cases(dataset, [case.case_id for case in dataset.cases], settings)
    plan = make_plan(fingerprint, dataset, settings, device="cpu", memory_gib=8, cores=2)
    assert (plan.spacing, plan.patch_size) == ((1.0, 1.0, 1.0), (40, 56, 40))
    store = prepare(dataset, settings, plan)
    for source in dataset.cases:
        np.testing.assert_array_equal(store.case(source.case_id).source_label(), read_label(source.label).array)
