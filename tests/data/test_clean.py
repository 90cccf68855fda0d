"""Entries that nobody uses any more go; entries in use stay, whatever happens at the same moment."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from medtrain.cli.data import app
from medtrain.data.case import Dataset
from medtrain.data.clean import DAY_S, list_entries, remove_entries
from medtrain.data.images.copies import prepare_images
from medtrain.data.images.plan import ImageFormat
from medtrain.data.module import SegmentationData
from medtrain.data.prepare import prepare
from medtrain.data.scan import scan_cases
from medtrain.data.store import Store, case_folder, mark_used
from medtrain.data.volume_data import VolumeData
from medtrain.errors import UsageError
from medtrain.registry import build
from medtrain.run.atomic import discard
from tests.data.small_data import small_dataset, small_plan

SPLIT = {"train": ["case_0", "case_1"], "val": ["case_2"]}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return small_dataset(tmp_path / "raw", cases=3)


@pytest.fixture
def settings(tmp_path: Path) -> VolumeData:
    return VolumeData(store=str(tmp_path / "store"))


@pytest.fixture
def store(dataset: Dataset, settings: VolumeData) -> Store:
    return prepare(dataset, settings, small_plan())


def age(path: Path, days: float) -> Path:
    """Let an entry's last use be some days ago."""
    when = time.time() - days * DAY_S
    os.utime(path, (when, when))
    return path


def folder(store: Store, case_id: str) -> Path:
    return case_folder(store.root, store.keys[case_id])


def is_fresh(path: Path) -> bool:
    return time.time() - path.stat().st_mtime < DAY_S / 2


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["clean", *map(str, args)])


def test_entries_say_what_they_are(store: Store, dataset: Dataset) -> None:
    age(folder(store, "case_1"), 40)
    (folder(store, "case_2") / "case.json").write_bytes(b"{")
    entries = {entry.path: entry for entry in list_entries(store.root)}
    assert len(entries) == 6  # three cases, and what planning knows of each
    one = entries[folder(store, "case_1")]
    assert (one.is_case, one.source, one.spacing) == (True, str(dataset.root), (1.0, 1.0, 1.0))
    assert one.size == sum(path.stat().st_size for path in one.path.iterdir())
    assert time.time() - one.last_used == pytest.approx(40 * DAY_S, abs=3600)
    damaged = entries[folder(store, "case_2")]
    assert (damaged.is_case, damaged.source, damaged.spacing) == (True, None, None)
    assert sum(not entry.is_case for entry in entries.values()) == 3


def test_only_what_is_old_goes(store: Store, dataset: Dataset, settings: VolumeData) -> None:
    old = [age(folder(store, "case_0"), 31), age(sorted((store.root / "scans").iterdir())[0], 31)]
    age(folder(store, "case_1"), 29)
    foreign = [store.root / "cases" / "patient_1", store.root / "scans" / "notes.json"]
    foreign[0].mkdir()
    foreign[1].write_text("{}")
    for path in foreign:
        age(path, 99)
    everything = {path for part in ("cases", "scans") for path in (store.root / part).iterdir()}
    before = time.time() - 30 * DAY_S
    entries = [entry for entry in list_entries(store.root) if entry.last_used < before]
    assert {entry.path for entry in remove_entries(store.root, entries, before=before)} == set(old)
    assert {path for part in ("cases", "scans") for path in (store.root / part).iterdir()} == everything - set(old)
    done: list[str] = []
    prepare(dataset, settings, small_plan(), progress=lambda number, total, case_id: done.append(case_id))
    assert done == ["case_0"]


def test_what_is_used_while_it_is_being_removed_stays(store: Store) -> None:
    before = time.time() - DAY_S
    for case_id in ("case_0", "case_1"):
        age(folder(store, case_id), 2)
    entries = [entry for entry in list_entries(store.root) if entry.last_used < before]
    assert mark_used(folder(store, "case_0"))
    assert [entry.path for entry in remove_entries(store.root, entries, before=before)] == [folder(store, "case_1")]
    assert store.case("case_0").read_label().any()
    assert not mark_used(folder(store, "case_1"))
    assert remove_entries(store.root, entries, before=before) == []  # another clean was faster


def test_what_is_moved_aside_is_put_back_unless_it_was_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "entry"

    def make(content: str) -> None:
        path.mkdir()
        (path / "file").write_text(content)

    def again(aside: Path) -> bool:
        make("new")
        return True

    make("old")
    assert not discard(path, unless=lambda aside: (aside / "file").read_text() == "old")
    assert (path / "file").read_text() == "old"
    assert discard(path, unless=again)
    assert (path / "file").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["entry"]


def test_a_case_that_vanishes_before_it_is_marked_is_prepared(
    store: Store, dataset: Dataset, settings: VolumeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clean_first(path: Path) -> bool:
        if path == folder(store, "case_1"):
            discard(path, unless=lambda aside: False)
        return mark_used(path)

    monkeypatch.setattr("medtrain.data.prepare.mark_used", clean_first)
    done: list[str] = []
    prepare(dataset, settings, small_plan(), progress=lambda number, total, case_id: done.append(case_id))
    assert done == ["case_1"]


def test_every_use_is_noted(
    store: Store, dataset: Dataset, settings: VolumeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [entry.path for entry in list_entries(store.root)]
    cases = [folder(store, case_id) for case_id in store.case_ids]

    def old() -> None:
        for path in paths:
            age(path, 9)

    old()
    again = prepare(dataset, settings, small_plan())
    assert [is_fresh(path) for path in cases] == [True] * 3
    scan_cases(dataset, settings)
    assert all(is_fresh(path) for path in paths)

    clock = [time.time()]
    monkeypatch.setattr("medtrain.data.store.time", type("Clock", (), {"time": staticmethod(lambda: clock[0])}))
    data = SegmentationData(
        settings=settings,
        dataset=dataset,
        store=again,
        split=SPLIT,
        plan=small_plan(),
        augment=build("augment", {"name": "none"}, in_channels=1, masked_channels=()),
        seed=0,
    )
    for use in (lambda: next(data.train_batches()), lambda: data.evaluation_item("case_2")):
        old()
        use()
        assert [is_fresh(path) for path in cases] == [True] * 3  # those of the other part as well
        old()
        use()
        assert not any(is_fresh(path) for path in cases)  # once an hour is enough
        clock[0] += 3601


def test_a_store_that_may_only_be_read_serves(
    store: Store, dataset: Dataset, settings: VolumeData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr("medtrain.data.store.os.utime", refuse)
    done: list[str] = []
    again = prepare(dataset, settings, small_plan(), progress=lambda number, total, case_id: done.append(case_id))
    assert (again.keys, done) == (store.keys, [])
    assert not mark_used(store.root / "cases" / "nothing")


def test_the_command(store: Store, dataset: Dataset) -> None:
    age(folder(store, "case_0"), 31)
    dry = run(store.root, "--dry-run")
    assert dry.exit_code == 0, dry.output
    rows = [line.split() for line in dry.stdout.splitlines() if str(dataset.root) in line]
    assert [row[1:7] for row in rows] == [["1", "x", "1", "x", "1", "2"], ["1", "x", "1", "x", "1", "1"]]
    assert (rows[0][-1], rows[1][-2:]) == (time.strftime("%Y-%m-%d"), ["would", "go"])
    assert "would be freed: not used for 30 days" in dry.stdout
    assert folder(store, "case_0").exists()
    assert "nothing to remove" in run(store.root, "--days", "32").stdout
    done = run(store.root)
    assert done.exit_code == 0, done.output
    assert " freed: not used for 30 days" in done.stdout
    assert not folder(store, "case_0").exists()
    assert folder(store, "case_1").exists()


def test_the_command_wants_a_store(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    wrong = run(tmp_path)
    assert wrong.exit_code == 2
    assert "is not a store of prepared cases" in wrong.stderr
    assert run(tmp_path, "--days", "0").exit_code == 2
    with pytest.raises(UsageError):
        list_entries(tmp_path / "nothing")


def test_copies_of_images_go_as_a_whole(tmp_path: Path) -> None:
    photo = tmp_path / "raw" / "photo.png"
    photo.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120), dtype=np.uint8)).save(photo)
    for side in (8, 16):
        prepare_images([photo], ImageFormat(2, (side, side), 1), store=tmp_path / "store", root=photo.parent, copy=True)
    old, new = sorted((tmp_path / "store" / "images").iterdir())
    age(old, 40)
    entries = list_entries(tmp_path / "store")
    assert [(entry.path, entry.images, entry.source) for entry in entries] == [
        (old, 1, str(photo.parent)),
        (new, 1, str(photo.parent)),
    ]
    assert entries[0].size > 0
    result = run(tmp_path / "store")
    assert result.exit_code == 0
    assert "images" in result.output
    assert not old.exists()
    assert new.exists()
