import dataclasses
import itertools
import logging
import math
import multiprocessing
import multiprocessing.forkserver
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medtrain.data.case import Dataset
from medtrain.data.module import SegmentationData
from medtrain.data.prepare import prepare
from medtrain.data.store import Store
from medtrain.data.volume_data import VolumeData
from medtrain.errors import ConfigError, MedtrainError
from medtrain.registry import build
from medtrain.run.log import close_logging
from tests.data.small_data import small_dataset, small_plan

SPLIT = {"train": ["case_0", "case_1", "case_2"], "val": ["case_3", "case_4"]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, VolumeData, Store]:
    root = tmp_path_factory.mktemp("module")
    dataset = small_dataset(root / "raw")
    settings = VolumeData(store=str(root / "store"), samples_per_case=3)
    return dataset, settings, prepare(dataset, settings, small_plan())


def make(
    prepared: tuple[Dataset, VolumeData, Store],
    *,
    workers: int | None = None,
    augment: str = "none",
    split: Mapping[str, Sequence[str]] = SPLIT,
    **plan: Any,
) -> SegmentationData:
    dataset, settings, store = prepared
    return SegmentationData(
        settings=replace(settings, num_workers=workers),
        dataset=dataset,
        store=store,
        split=split,
        plan=small_plan(**plan),
        augment=build("augment", {"name": augment}, in_channels=1, masked_channels=()),
        seed=11,
    )


def take(batches: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return list(itertools.islice(batches, count))


def assert_same(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other):
        assert (a["key"], a["case_id"], a["weight"]) == (b["key"], b["case_id"], b["weight"])
        for name in ("image", "label"):
            assert all(torch.equal(x, y) for x, y in zip(a[name], b[name], strict=True))
        assert repr(a["params"]) == repr(b["params"])


def test_an_epoch_sees_every_training_case_equally(prepared: tuple[Dataset, VolumeData, Store]) -> None:
    data = make(prepared, batch_size=3)
    assert (data.batch_size, data.batches_per_epoch) == (3, 3)  # 3 cases, 3 samples of each
    seen = [case_id for batch in take(data.train_batches(), 3) for case_id in batch["case_id"]]
    assert sorted(seen) == sorted(SPLIT["train"] * 3)


@pytest.mark.parametrize("augment", ["none", "nnunet"])
def test_batches_are_the_same_with_any_number_of_workers(
    prepared: tuple[Dataset, VolumeData, Store], augment: str
) -> None:
    alone, shared = make(prepared, augment=augment), make(prepared, workers=2, augment=augment)
    state = torch.get_rng_state()
    batches = shared.train_batches(1)
    assert_same(take(alone.train_batches(1), 7), take(batches, 7))
    assert torch.equal(torch.get_rng_state(), state)  # no randomness is taken from the training process
    shared.close()
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("start", [1, 3, 8])
def test_starting_at_a_batch_equals_skipping_to_it(prepared: tuple[Dataset, VolumeData, Store], start: int) -> None:
    data = make(prepared, augment="nnunet")
    assert_same(take(data.train_batches(start), 3), take(data.train_batches(), start + 3)[start:])


def test_two_ranks_see_what_one_sees(prepared: tuple[Dataset, VolumeData, Store]) -> None:
    data = make(prepared)
    whole = take(data.train_batches(), 5)
    halves = [take(data.train_batches(0, rank=rank, world_size=2), 5) for rank in (0, 1)]
    joined = [
        {key: a[key] + b[key] for key in ("image", "label", "params", "case_id", "key", "weight")}
        for a, b in zip(*halves)
    ]
    assert_same(whole, joined)


def test_a_batch_that_ranks_cannot_share(prepared: tuple[Dataset, VolumeData, Store]) -> None:
    with pytest.raises(ConfigError, match=r"data\.batch_size: 4 patches cannot be divided among 3 processes"):
        make(prepared).train_batches(0, rank=0, world_size=3)


def test_a_first_look_starts_no_process(
    prepared: tuple[Dataset, VolumeData, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medtrain.data.stream.read_ahead", pytest.fail)
    assert next(make(prepared, workers=2).train_batches())["weight"] == 4


def test_workers_leave_stopping_to_the_training_process(prepared: tuple[Dataset, VolumeData, Store]) -> None:
    # schedulers signal every process of a job; the training process needs batches until it stops
    data = make(prepared, workers=1)
    batches = data.train_batches()
    take(batches, 2)
    workers = [child.pid for child in multiprocessing.active_children()]
    assert len(workers) == 1
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        for pid in (*workers, multiprocessing.forkserver._forkserver._forkserver_pid):
            os.kill(pid, number)
    assert_same(take(make(prepared).train_batches(2), 20), take(batches, 20))
    assert [child.pid for child in multiprocessing.active_children()] == workers
    data.close()
    again = make(prepared, workers=1)
    take(again.train_batches(), 2)  # the server still makes workers
    again.close()


def test_a_killed_worker_is_one_sentence_and_ends_the_others(
    prepared: tuple[Dataset, VolumeData, Store],
) -> None:
    batches = make(prepared, workers=2).train_batches()
    take(batches, 2)
    one, _ = multiprocessing.active_children()
    one.kill()
    with pytest.raises(
        MedtrainError, match=r"a process that reads training data was killed by signal 9 \(Killed\)"
    ) as error:
        take(batches, 99)
    assert "data.num_workers" in str(error.value.hint)
    assert multiprocessing.active_children() == []


def test_more_workers_than_cores_are_allowed_with_one_line(
    prepared: tuple[Dataset, VolumeData, Store], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    close_logging()  # of an earlier test
    monkeypatch.setattr("medtrain.data.stream.available_cores", lambda: 1)
    data = make(prepared, workers=2)
    with caplog.at_level(logging.WARNING):
        take(data.train_batches(), 3)
    data.close()
    assert caplog.messages == ["data.num_workers=2, but this process may use 1 core(s) only"]


def test_a_damaged_case_is_one_sentence_through_a_worker_too(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "raw", cases=2)
    settings = VolumeData(store=str(tmp_path / "store"))
    store = prepare(dataset, settings, small_plan())
    split = {"train": ["case_0", "case_1"], "val": []}
    for workers in (0, 1):
        data = make((dataset, settings, store), workers=workers, split=split, batch_size=2)
        batches = data.train_batches()
        next(batches)
        path = tmp_path / "store" / "cases" / store.keys["case_1"] / "label.b2nd"
        path.write_bytes(b"")
        store._open.clear()
        with pytest.raises(MedtrainError, match=r"^the prepared case case_1 in \S+ is missing or damaged$") as error:
            take(batches, 3)
        assert error.value.hint == "start the command again; damaged cases are prepared anew"
        assert multiprocessing.active_children() == []  # though the traceback still holds the iterator
        data.close()
        prepare(dataset, settings, small_plan())


def test_to_device_augments_and_lays_out(prepared: tuple[Dataset, VolumeData, Store]) -> None:
    data = make(prepared, augment="nnunet")
    batch = next(data.train_batches())
    reads = [image.clone() for image in batch["image"]]
    moved = data.to_device(batch, torch.device("cpu"), torch.channels_last_3d)
    assert (moved["image"].shape, moved["label"].shape) == ((4, 1, 8, 8, 8), (4, 8, 8, 8))
    assert moved["image"].is_contiguous(memory_format=torch.channels_last_3d)
    assert moved["case_id"] == batch["case_id"]
    assert all(torch.equal(a, b) for a, b in zip(batch["image"], reads))
    plain = data.to_device(batch, torch.device("cpu"))
    assert torch.equal(plain["image"], moved["image"])


def test_evaluation_sees_whole_cases(prepared: tuple[Dataset, VolumeData, Store]) -> None:
    data = make(prepared)
    items = list(data.evaluation_items())
    assert [item["case_id"] for item in items] == SPLIT["val"]
    item, case = items[0], prepared[2].case("case_3")
    stats = case.stats[0]
    expected = (case.read_image().astype(np.float64) - stats.mean) / stats.std
    np.testing.assert_allclose(item["image"].numpy(), expected, atol=1e-5)
    assert item["image"].dtype == torch.float32
    np.testing.assert_array_equal(item["label"], case.read_label())
    np.testing.assert_array_equal(item["source_label"], case.source_label())
    assert (item["geometry"], item["spacing"]) == (case.geometry, (1.0, 1.0, 1.0))


def test_a_trial_takes_a_piece_that_is_quick_to_judge(prepared: tuple[Dataset, VolumeData, Store]) -> None:
    data = make(prepared)
    data.plan = dataclasses.replace(data.plan, patch_size=(4, 4, 8))
    piece, whole = data.trial_item("case_3"), data.evaluation_item("case_3")
    sizes = [min(size, 2 * patch) for size, patch in zip(whole["label"].shape, data.plan.patch_size)]
    box = tuple(slice((n - size) // 2, (n + size) // 2) for n, size in zip(whole["label"].shape, sizes))
    assert list(piece["label"].shape) == sizes
    assert math.prod(sizes) < whole["label"].size
    assert torch.equal(piece["image"], whole["image"][(slice(None), *box)])
    np.testing.assert_array_equal(piece["source_label"], whole["label"][box])
    assert piece["geometry"].resampled_shape == piece["geometry"].canonical_shape == tuple(sizes)
    assert piece["geometry"].canonical_spacing == piece["spacing"] == whole["spacing"]
    assert piece["group"] == whole["group"] == "case_3"


def test_evaluation_is_divided_without_repeats(prepared: tuple[Dataset, VolumeData, Store]) -> None:
    data = make(prepared, split={"train": ["case_0"], "val": [f"case_{i}" for i in (1, 2, 3, 4)]})
    ranks = [[item["case_id"] for item in data.evaluation_items(rank=rank, world_size=3)] for rank in range(3)]
    assert ranks == [["case_1", "case_4"], ["case_2"], ["case_3"]]
    assert data.evaluation_cases(limit=2) == ["case_1", "case_3"]
    assert data.evaluation_cases(limit=9) == ["case_1", "case_2", "case_3", "case_4"]
    assert data.evaluation_cases("train") == ["case_0"]
    assert [item["case_id"] for item in data.evaluation_items(limit=2)] == ["case_1", "case_3"]


def test_what_identifies_the_data(prepared: tuple[Dataset, VolumeData, Store]) -> None:
    data = make(prepared)
    told = data.describe()
    assert told["cases"] == prepared[2].keys
    assert set(told["contents"]) == set(told["cases"])
    assert len(set(told["contents"].values())) == len(told["cases"])
    assert (told["dataset"], told["num_train"], told["num_val"]) == ("Small", 3, 2)
    other = make(prepared, split={"train": ["case_0"], "val": ["case_3"]}).describe()
    assert other["split_hash"] != told["split_hash"]
    assert other["data_hash"] == told["data_hash"]
    assert set(other["cases"]) == {"case_0", "case_3"}


def test_labels_of_classes_that_nobody_annotated_are_warned_of(
    prepared: tuple[Dataset, VolumeData, Store], caplog: pytest.LogCaptureFixture
) -> None:
    dataset, settings, store = prepared
    augment = build("augment", {"name": "none"}, in_channels=1, masked_channels=())
    known = {"case_1": (True, True, False), "case_2": (True, True, True)}
    with caplog.at_level(logging.WARNING):
        data = SegmentationData(
            settings=settings, dataset=dataset, store=store, split=SPLIT, plan=small_plan(), augment=augment, seed=0,
            annotated=known,
        )  # fmt: skip
    (record,) = caplog.records
    assert record.getMessage().startswith("case_1: the label holds tumour, which data.annotated says nobody annotated")
    batch = data.to_device(take(data.train_batches(), 1)[0], torch.device("cpu"))
    assert batch["annotated"].shape == (4, 3)
    assert data.evaluation_item("case_3").get("annotated") is None
    assert data.describe()["annotated"]["case_1"] == [True, True, False]
