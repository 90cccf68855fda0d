import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medtrain.data.patches import PatchDataset, collate, read_box
from medtrain.data.plan import ChannelNormalization, Plan
from medtrain.data.prepare import prepare
from medtrain.data.sampler import EpochSampler, SampleKey
from medtrain.data.store import Store
from medtrain.data.volume_data import VolumeData
from tests.data.small_data import small_dataset, small_plan

RAW = ChannelNormalization("none")


class Enlarged:
    """Asks for a border around the patch and draws a number."""

    def __init__(self, border: int = 0) -> None:
        self.border = border

    def draw(self, rng: np.random.Generator, *, patch_size: tuple[int, ...]) -> dict[str, Any]:
        return {"read_size": tuple(n + 2 * self.border for n in patch_size), "number": float(rng.random())}

    def apply(self, batch: dict[str, Any], *, patch_size: tuple[int, ...], label_pad: int) -> dict[str, Any]:
        raise AssertionError("not the reader's business")


def patches(store: Store, plan: Plan, **settings: Any) -> PatchDataset:
    values = {"augment": Enlarged(), "oversample_foreground": 0.5, "batch_size": 4, "seed": 7, **settings}
    return PatchDataset(store=store, case_ids=store.case_ids, plan=plan, **values)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("patches")
    return prepare(small_dataset(root / "raw"), VolumeData(store=str(root / "store")), small_plan())


def keys(count: int, slot: int = 0) -> list[SampleKey]:
    return [SampleKey(epoch, index, slot) for epoch in range(count // 20) for index in range(20)]


def test_a_sample_is_a_function_of_its_key(store: Store) -> None:
    plan = small_plan()
    key = SampleKey(2, 13, 3)
    one, other = patches(store, plan)[key], patches(store, plan)[key]
    assert one["case_id"] == other["case_id"] == "case_3"
    assert one["key"] == (2, 13)
    assert torch.equal(one["image"], other["image"])
    assert torch.equal(one["label"], other["label"])
    assert one["params"] == other["params"]
    assert (one["image"].dtype, one["label"].dtype) == (torch.float32, torch.uint8)
    assert (one["image"].shape, one["label"].shape) == ((1, 8, 8, 8), (8, 8, 8))
    numbers = {
        patches(store, plan, seed=seed)[SampleKey(epoch, index, 3)]["params"]["number"]
        for seed in (1, 2)
        for epoch in (0, 1)
        for index in (0, 1)
    }
    assert len(numbers) == 8


def test_patches_hold_the_voxels_of_the_case(store: Store) -> None:
    data = patches(store, small_plan(normalization=RAW))
    for key in keys(40):
        sample = data[key]
        case = store.case(sample["case_id"])
        image, label = case.read_image()[0], case.read_label()
        windows = np.lib.stride_tricks.sliding_window_view(image, (8, 8, 8))
        found = np.argwhere((windows == sample["image"].numpy()[0]).all(axis=(-1, -2, -3)))
        assert len(found) == 1  # wholly inside, so no voxel is padded
        d, h, w = found[0]
        np.testing.assert_array_equal(sample["label"].numpy(), label[d : d + 8, h : h + 8, w : w + 8])


def test_patches_are_normalised(store: Store) -> None:
    raw = patches(store, small_plan(normalization=RAW))
    normal = patches(store, small_plan())
    sample = raw[SampleKey(0, 1, 0)]
    stats = store.case(sample["case_id"]).stats[0]
    expected = (sample["image"] - stats.mean) / stats.std
    torch.testing.assert_close(normal[SampleKey(0, 1, 0)]["image"], expected, rtol=1e-5, atol=1e-5)


def test_the_last_patches_of_a_batch_are_centred_on_each_class_alike(store: Store) -> None:
    data = patches(store, small_plan(patch_size=(3, 3, 3)), oversample_foreground=0.33)
    assert data.first_foreground_slot == 3
    centres = [int(data[key]["label"][1, 1, 1]) for key in keys(400, slot=3)]
    assert 0 not in centres
    assert 150 < centres.count(1) < 250  # each class with probability 1/2, however small it is
    anywhere = [int(data[key]["label"][1, 1, 1]) for key in keys(400, slot=2)]
    assert anywhere.count(0) > 200


def forced(data: PatchDataset, keys: Sequence[SampleKey]) -> list[bool]:
    return [data.is_foreground(key) for key in keys]


@pytest.mark.parametrize(("batch_size", "share"), [(1, 0.33), (1, 0.5), (1, 0.75), (2, 0.1), (3, 0.9)])
def test_a_batch_too_small_for_the_share_leaves_it_to_several(store: Store, batch_size: int, share: float) -> None:
    data = patches(store, small_plan(), batch_size=batch_size, oversample_foreground=share)
    sampler = EpochSampler(num_samples=100, batch_size=batch_size, seed=0)
    batches = itertools.islice(sampler.batches(), 12 * sampler.batches_per_epoch)
    keys = [key for batch in batches for key in batch]
    found = forced(data, keys)
    assert sum(found) / len(found) == pytest.approx(share, abs=0.01)
    for epoch in range(12):
        within = [hit for key, hit in zip(keys, found) if key.epoch == epoch]
        assert sum(within) == pytest.approx(share * len(within), abs=2)
    # the sample's own epochs have the share too, whatever its place in the order
    own = [hit for key, hit in zip(keys, found) if key.index == 17]
    assert sum(own) == pytest.approx(share * 12, abs=1.001)
    assert forced(data, keys) == found


@pytest.mark.parametrize("batch_size", [2, 4, 9])
def test_the_last_slots_of_a_batch_that_is_large_enough(store: Store, batch_size: int) -> None:
    data = patches(store, small_plan(), batch_size=batch_size, oversample_foreground=0.33)
    found = forced(data, [SampleKey(3, 40 + slot, slot) for slot in range(batch_size)])
    # nnU-Net: not slot < round(batch_size * (1 - share))
    assert found == [slot >= round(batch_size * 0.67) for slot in range(batch_size)]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_and_all_are_none_and_all(store: Store, share: float) -> None:
    data = patches(store, small_plan(), batch_size=1, oversample_foreground=share)
    assert set(forced(data, keys(40))) == {bool(share)}


def test_a_batch_of_one_has_foreground(store: Store) -> None:
    data = patches(store, small_plan(patch_size=(3, 3, 3)), batch_size=1, oversample_foreground=0.33)
    forced_keys = [key for key in keys(60) if data.is_foreground(key)]
    assert len(forced_keys) == pytest.approx(0.33 * 60, abs=1)
    assert all(int(data[key]["label"][1, 1, 1]) > 0 for key in forced_keys)


def test_centres_cover_the_case_and_patches_stay_inside(store: Store) -> None:
    data, case = patches(store, small_plan()), store.case("case_0")
    for foreground in (False, True):
        starts = [data._patch_start(case, (8, 8, 8), rng, foreground=foreground) for rng in generators(2000)]
        assert np.min(starts, axis=0).tolist() == [0, 0, 0]
        # the box of labelled voxels ends at 9, 12, 10: centred on its last voxel a patch begins at 4, 7, 5
        assert np.max(starts, axis=0).tolist() == ([4, 7, 5] if foreground else [4, 8, 6])


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


def test_a_small_case_lies_in_the_middle(store: Store) -> None:
    data = patches(store, small_plan(patch_size=(20, 21, 8), normalization=RAW))
    sample = data[SampleKey(0, 0, 0)]
    image = sample["image"].numpy()[0]
    # 12 and 16 voxels in 20 and 21: 4 and 2 before
    assert not image[:4].any()
    assert not image[16:].any()
    assert image[4].any()
    assert not image[:, :2].any()
    assert not image[:, 18:].any()
    assert image[:, 2].any()
    assert image[:, 17].any()


def test_only_the_border_that_was_drawn_is_read_around_the_same_patch(store: Store) -> None:
    plan = small_plan(normalization=RAW)
    for key in (*keys(20), *keys(20, slot=3)):
        narrow, wide = patches(store, plan)[key], patches(store, plan, augment=Enlarged(3))[key]
        assert wide["image"].shape == (1, 14, 14, 14)
        middle = (slice(3, 11),) * 3
        assert torch.equal(wide["image"][(slice(None), *middle)], narrow["image"])
        assert torch.equal(wide["label"][middle], narrow["label"])
        assert wide["params"]["number"] == narrow["params"]["number"]


def test_boxes_beyond_the_case_are_filled(store: Store) -> None:
    case = store.case("case_0")
    image, label = read_box(case, (-2, 10, 3), (5, 10, 4), small_plan(normalization=RAW, ignore_index=3))
    assert (image.shape, label.shape) == ((1, 5, 10, 4), (5, 10, 4))
    np.testing.assert_array_equal(image[0, 2:, :6], case.read_image()[0, :3, 10:16, 3:7])
    np.testing.assert_array_equal(label[2:, :6], case.read_label()[:3, 10:16, 3:7])
    assert not image[0, :2].any()
    assert not image[0, :, 6:].any()
    assert (label[:2] == 3).all()
    assert (label[:, 6:] == 3).all()
    assert not read_box(case, (-2, 10, 3), (5, 10, 4), small_plan())[1][:2].any()


def test_slices_for_two_dimensions(store: Store) -> None:
    data = patches(store, small_plan(patch_size=(8, 10), normalization=RAW), augment=Enlarged(1))
    depths = set()
    for key in keys(200):
        sample = data[key]
        assert (sample["image"].shape, sample["label"].shape) == ((1, 10, 12), (10, 12))
        case = store.case(sample["case_id"])
        rows = case.read_image()[0]
        inner = sample["image"].numpy()[0, 1:9, 1:11]
        windows = np.lib.stride_tricks.sliding_window_view(rows, (8, 10), axis=(1, 2))
        found = np.argwhere((windows == inner).all(axis=(-1, -2)))
        assert len(found) == 1
        depths.add(int(found[0][0]))
    assert depths >= set(range(12))
    forced = patches(store, small_plan(patch_size=(3, 3)))
    assert all(int(forced[key]["label"][1, 1]) > 0 for key in keys(100, slot=3))


def test_sparse_annotation_is_always_met(tmp_path: Path) -> None:
    plan = small_plan(patch_size=(3, 3, 3), ignore_index=3)
    dataset = small_dataset(tmp_path / "raw", ignore_value=9, cases=2)
    store = prepare(dataset, VolumeData(store=str(tmp_path / "store")), plan)
    data = patches(store, plan)
    assert all(int(data[key]["label"][1, 1, 1]) != 3 for key in keys(100, slot=0))


def test_voxels_outside_the_body_stay_zero(tmp_path: Path) -> None:
    from medtrain.data.io.nifti import write_image
    from tests.data.small_data import grid_of

    plan = small_plan(normalization=ChannelNormalization("zscore", nonzero=True), patch_size=(12, 16, 14))
    dataset = small_dataset(tmp_path / "raw", cases=1)
    image = np.zeros((1, 12, 16, 14), dtype=np.int16)
    image[0, 1:11, 1:15, 1:13] = np.random.default_rng(0).integers(50, 60, (10, 14, 12))
    image[0, 1:3, 1:3, 1:3] = 0
    write_image(dataset.cases[0].images[0], image, grid_of((12, 16, 14), (1, 1, 1)))
    store = prepare(dataset, VolumeData(store=str(tmp_path / "store")), plan)
    case = store.case("case_0")
    assert case.shape == (10, 14, 12)
    patch = patches(store, plan)[SampleKey(0, 0, 0)]["image"].numpy()[0]
    np.testing.assert_array_equal(patch != 0, image[0] != 0)
    inside = patch[image[0] != 0]
    np.testing.assert_allclose((inside.mean(), inside.std()), (0, 1), atol=1e-5)


def test_collate_keeps_lists() -> None:
    samples = [
        {"image": torch.zeros(1, n, n), "label": torch.zeros(n, n), "params": {}, "case_id": str(n), "key": (0, n)}
        for n in (2, 3)
    ]
    batch = collate(samples)
    assert batch["weight"] == 2
    assert batch["case_id"] == ["2", "3"]
    assert [tuple(image.shape) for image in batch["image"]] == [(1, 2, 2), (1, 3, 3)]
    assert batch["key"] == [(0, 2), (0, 3)]


def test_regions_are_drawn_as_often_as_each_other(store: Store) -> None:
    plan = replace(small_plan(normalization=RAW), regions=((1, 2), (2,)), region_names=("all", "tumour"))
    data = patches(store, plan)
    tables = [data._tables(store.case("case_0"), draw, foreground=True) for draw in (0.1, 0.9)]
    case = store.case("case_0")
    np.testing.assert_array_equal(np.concatenate(tables[0]), np.concatenate([case.foreground(1), case.foreground(2)]))
    np.testing.assert_array_equal(np.concatenate(tables[1]), case.foreground(2))


def test_patches_are_centred_only_on_what_was_annotated(store: Store) -> None:
    known = dict.fromkeys(store.case_ids, (True, False, True))
    data = patches(store, small_plan(normalization=RAW), annotated=known)
    inner = [data[key] for key in keys(100, slot=3)]
    assert {int(sample["label"][4, 4, 4]) for sample in inner} == {2}
    assert all(sample["annotated"].tolist() == [True, False, True] for sample in inner)

    nothing = patches(store, small_plan(normalization=RAW), annotated={"case_0": (True, False, False)})
    assert nothing._tables(store.case("case_0"), 0.5, foreground=True) == []
    assert nothing[SampleKey(0, 1, 3)]["annotated"].tolist() == [True, True, True]
    assert "annotated" not in patches(store, small_plan())[SampleKey(0, 1, 3)]


def test_no_patch_is_centred_on_an_ignored_voxel(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "raw", cases=2, ignore_value=7, shape=(24, 16, 14))
    plan = small_plan(normalization=RAW, ignore_index=3)
    scribbled = prepare(dataset, VolumeData(store=str(tmp_path / "store")), plan)
    for regions in (None, ((1, 2), (2,))):
        data = patches(scribbled, replace(plan, regions=regions, region_names=("all", "tumour") if regions else ()))
        for key in (*keys(60, slot=3), *keys(60, slot=0)):
            foreground = key.slot == 3
            for table in data._tables(scribbled.case("case_0"), key.index / 20, foreground=foreground):
                label = scribbled.case("case_0").read_label()
                assert (label[tuple(table.T)] != 3).all()
            assert (data[key]["label"] != 3).any()
