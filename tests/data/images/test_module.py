from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from medtrain.data.digests import digest_of
from medtrain.data.images.module import ImageModule
from medtrain.data.images.plan import ImageFormat, ImagePlan
from medtrain.data.images.reading import read_annotation, read_for
from medtrain.data.marks import Box, Point
from medtrain.data.sample import Sample, SampleSet, Target
from medtrain.errors import ConfigError, DataError, UsageError
from tests.data.images.small_sets import SIZE, Given, Shifting, open_module, picture, small_set


def given(root: Path, samples: SampleSet, **options: Any) -> Given:
    return Given(**{"samples": samples, "store": str(root / "store"), "batch_size": 4, "num_workers": 0} | options)


def take(data: ImageModule, count: int, start: int = 0, **options: int) -> list[dict[str, Any]]:
    return list(itertools.islice(data.train_batches(start, **options), count))


def assert_same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        assert one["case_id"] == other["case_id"]
        for name, value in one.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value.nan_to_num(-1), other[name].nan_to_num(-1)), name
                assert value.stride() == other[name].stride()


def test_an_epoch_holds_every_sample_once_with_its_target(tmp_path: Path) -> None:
    data, plan, found = open_module(given(tmp_path, small_set(tmp_path), shares=(0.8, 0.2, 0)))
    assert data.batches_per_epoch == 4
    batches = take(data, 4)
    ids = [name for batch in batches for name in batch["case_id"]]
    assert sorted(ids) == found.split["train"]
    assert len(ids) == 16
    assert ids != found.split["train"]
    batch = batches[0]
    assert batch["image"].shape == (4, 3, *SIZE)
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["weight"] == 4.0
    assert batch["group"] == [f"p{int(name[1:]) // 2:02d}" for name in batch["case_id"]]
    assert batch["target"].tolist() == [[int(name[1:]) % 2] for name in batch["case_id"]]
    assert set(batch) == {"case_id", "group", "weight", "image", "target"}
    assert plan.targets[0].counts == (8, 8)


def test_the_order_and_the_changes_differ_by_epoch_and_seed(tmp_path: Path) -> None:
    settings = given(tmp_path, small_set(tmp_path), shares=(1, 0, 0))
    data, *_ = open_module(settings, seed=1)
    first, second = take(data, 5), take(data, 5, start=5)
    other = take(open_module(settings, seed=2)[0], 5)
    ids = [[name for batch in batches for name in batch["case_id"]] for batches in (first, second, other)]
    assert ids[0] != ids[1] != ids[2] != ids[0]
    pixels = [{n: image for b in batches for n, image in zip(b["case_id"], b["image"])} for batches in (first, second)]
    changed = [name for name in pixels[0] if not torch.equal(pixels[0][name], pixels[1][name])]
    assert len(changed) > 12


def test_batches_are_the_same_from_any_start_and_for_any_number_of_ranks(tmp_path: Path) -> None:
    settings = given(tmp_path, small_set(tmp_path, 10), shares=(1, 0, 0), balance="sqrt")
    data, *_ = open_module(settings)
    whole = take(data, 8)
    assert_same(take(open_module(settings)[0], 3, start=5), whole[5:])
    halves = [take(data, 8, rank=rank, world_size=2) for rank in range(2)]
    for batch, *parts in zip(whole, *halves):
        assert batch["case_id"] == parts[0]["case_id"] + parts[1]["case_id"]
        assert torch.equal(batch["image"], torch.cat([part["image"] for part in parts]))
    with pytest.raises(ConfigError, match="4 samples cannot be divided among 3 processes"):
        data.train_batches(0, world_size=3)


def test_workers_give_what_the_training_process_reads(tmp_path: Path) -> None:
    large = [
        Sample(f"s{i}", (picture(tmp_path / f"s{i}.png", i, (60, 50)),), (i % 2,), group=f"p{i}") for i in range(6)
    ]
    samples = SampleSet("large", tmp_path, tuple(large), (Target("y", ("0", "1")),))
    settings = given(tmp_path, samples, shares=(0.7, 0.3, 0), image_size=SIZE, batch_size=2)
    alone, *_ = open_module(replace(settings, cache=False))
    assert not alone.copies.copied
    helped, *_ = open_module(replace(settings, num_workers=2, cache=True))
    assert helped.copies.copied
    try:
        assert_same(take(helped, 5), take(alone, 5))
        assert_same(list(helped.evaluation_items()), list(alone.evaluation_items()))
    finally:
        helped.close()


def test_evaluation_is_sharded_without_repeats_and_changes_nothing(tmp_path: Path) -> None:
    data, _, found = open_module(given(tmp_path, small_set(tmp_path), shares=(0.5, 0.5, 0)))
    val = found.split["val"]
    assert len(val) == 10
    assert data.cases_per_item == 4
    items = [list(data.evaluation_items(rank=rank, world_size=3)) for rank in range(3)]
    assert [[name for item in rank for name in item["case_id"]] for rank in items] == [val[r::3] for r in range(3)]
    assert [item["weight"] for item in data.evaluation_items()] == [4, 4, 2]
    assert data.evaluation_cases("val", limit=3) == [val[0], val[3], val[6]]
    assert data.evaluation_cases("test") == []
    named = next(data.judged_items(["s03"]))
    import cv2

    expected = cv2.imread(str(tmp_path / "s03.png"), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(named["image"][0].permute(1, 2, 0).numpy(), expected)


def test_images_are_normalised_on_the_device(tmp_path: Path) -> None:
    data, plan, _ = open_module(given(tmp_path, small_set(tmp_path), normalization="imagenet"))
    batch = take(data, 1)[0]
    done = data.to_device(batch, torch.device("cpu"), torch.channels_last)
    mean, std = torch.tensor(plan.mean).view(3, 1, 1), torch.tensor(plan.std).view(3, 1, 1)
    torch.testing.assert_close(done["image"], (batch["image"] / 255 - mean) / std)
    assert plan.mean == (0.485, 0.456, 0.406)
    assert done["image"].is_contiguous(memory_format=torch.channels_last)
    assert data.to_device(batch, torch.device("cpu"), None)["image"].is_contiguous()
    assert batch["image"].dtype == torch.uint8  # still


def test_views_are_normalised_like_single_images(tmp_path: Path) -> None:
    base = small_set(tmp_path, 4)
    rows = tuple(replace(sample, images=sample.images * 2) for sample in base.samples)
    samples = replace(base, samples=rows, view_names=("u", "v"))
    data, plan, _ = open_module(given(tmp_path, samples, shares=(1, 0, 0), normalization="imagenet"))
    batch = take(data, 1)[0]
    mean, std = torch.tensor(plan.mean).view(3, 1, 1), torch.tensor(plan.std).view(3, 1, 1)
    for memory_format in (None, torch.channels_last):
        done = data.to_device(batch, torch.device("cpu"), memory_format)["image"]
        torch.testing.assert_close(done, (batch["image"] / 255 - mean) / std)
        assert done.flatten(0, 1).is_contiguous(memory_format=memory_format or torch.contiguous_format)
    several = {**batch, "image": batch["image"] / 255}
    torch.testing.assert_close(data.to_device(several, torch.device("cpu"))["image"], done)


def test_unlabelled_targets_are_nan(tmp_path: Path) -> None:
    base = small_set(tmp_path, 6)
    rows = [
        replace(s, targets=(s.targets[0] if i else None, None if i % 2 else i / 4)) for i, s in enumerate(base.samples)
    ]
    samples = replace(base, samples=tuple(rows), targets=(Target("y", ("a", "b")), Target("age", None)))
    data, plan, _ = open_module(given(tmp_path, samples, shares=(1, 0, 0), batch_size=6))
    batch = take(data, 1)[0]
    values = dict(zip(batch["case_id"], batch["target"].tolist()))
    assert math.isnan(values["s00"][0])
    assert values["s00"][1] == 0
    assert values["s03"][0] == 1
    assert math.isnan(values["s03"][1])
    assert [target.counts for target in plan.targets] == [(2, 3), ()]
    assert plan.targets[1].mean == pytest.approx((0 + 0.5 + 1) / 3)
    assert plan.targets[1].std == pytest.approx(np.std([0, 0.5, 1]))


def test_bags_are_padded_and_drawn_from(tmp_path: Path) -> None:
    sizes = [1, 2, 5, 3]
    rows = tuple(
        Sample(
            f"bag{b}",
            tuple(picture(tmp_path / f"{b}_{i}.png", 10 * b + i) for i in range(size)),
            (b % 2,),
            group=f"bag{b}",
        )
        for b, size in enumerate(sizes)
    )
    samples = SampleSet("bags", tmp_path, rows, (Target("y", ("0", "1")),), bags=True)
    settings = given(tmp_path, samples, shares=(1, 0, 0), max_instances=3)
    data, plan, _ = open_module(settings, augment=Shifting(mirrors=False))
    assert plan.max_instances == 3
    assert plan.several_images
    batch = take(data, 1)[0]
    assert batch["image"].shape == (4, 3, 3, *SIZE)
    present = dict(zip(batch["case_id"], batch["present"].tolist()))
    assert present == {
        "bag0": [True, False, False],
        "bag1": [True, True, False],
        "bag2": [True] * 3,
        "bag3": [True] * 3,
    }
    done = data.to_device(batch, torch.device("cpu"), torch.channels_last)["image"]
    assert (done[~batch["present"]] == 0).all()
    assert not (done[batch["present"]] == 0).all()
    drawn = set()
    for batch in take(data, 12):
        for image in batch["image"][batch["case_id"].index("bag2")]:
            drawn.add(bytes((image - image.min()).numpy()))  # the same number is added to every pixel
    assert len(drawn) == 5  # not always the same three
    whole = [item["present"].shape for item in data.judged_items(["bag0", "bag2"])]
    assert whole == [(1, 1), (1, 5)]
    assert open_module(replace(settings, max_instances=None))[1].max_instances == 5


def test_missing_views_are_zero(tmp_path: Path) -> None:
    rows = tuple(
        Sample(
            f"v{i}",
            (picture(tmp_path / f"{i}_a.png", i) if i else None, picture(tmp_path / f"{i}_b.png", 50 + i)),
            (i % 2,),
            group=f"v{i}",
        )
        for i in range(4)
    )
    samples = SampleSet("views", tmp_path, rows, (Target("y", ("0", "1")),), view_names=("a", "b"))
    data, plan, _ = open_module(given(tmp_path, samples, shares=(1, 0, 0)))
    assert plan.view_names == ("a", "b")
    assert plan.runtime()["num_views"] == 2
    batch = take(data, 1)[0]
    row = batch["case_id"].index("v0")
    assert batch["present"].sum(dim=1).tolist() == [1 if i == row else 2 for i in range(4)]
    assert batch["present"][row].tolist() == [False, True]
    done = data.to_device(batch, torch.device("cpu"))["image"]
    assert (done[row, 0] == 0).all()
    assert (done[row, 1] != 0).any()


def test_the_table_is_encoded_with_the_training_part_alone(tmp_path: Path) -> None:
    base = small_set(tmp_path, 8)
    rows = [
        replace(
            sample,
            images=() if i == 1 else sample.images,
            group=sample.sample_id,
            numeric=(float(i) if i not in (2, 3) else None,),
            categorical=(None if i == 3 else "new" if i == 7 else "ab"[i % 2],),
            part="val" if i == 7 else "train",
        )
        for i, sample in enumerate(base.samples)
    ]
    samples = replace(base, samples=tuple(rows), numeric_names=("age",), categorical_names=("sex",))
    data, plan, _ = open_module(given(tmp_path, samples, batch_size=7))
    train = [0, 1, 4, 5, 6]
    assert plan.tabular is not None
    assert plan.optional_image
    assert plan.tabular.numeric[0].mean == pytest.approx(np.mean(train))
    assert plan.category_sizes == (4,)
    assert plan.numeric_names == ("age", "age_missing")
    batch = take(data, 1)[0]
    rows_of = {name: row for row, name in enumerate(batch["case_id"])}
    two = rows_of["s02"]
    assert batch["numeric"][two, 1] == 1
    assert batch["numeric"][rows_of["s04"], 1] == 0
    assert batch["observed"][two].tolist() == [False, True]  # of age and sex, not of age_missing
    assert not batch["observed"][rows_of["s03"]].any()  # without a table
    assert batch["image"].dim() == 4
    assert batch["present"].shape == (7, 1)
    assert [row for row in range(7) if not batch["present"][row, 0]] == [rows_of["s01"]]
    assert (data.to_device(batch, torch.device("cpu"))["image"][rows_of["s01"]] == 0).all()
    judged = next(data.evaluation_items())
    assert judged["categorical"].tolist() == [[1]]  # unseen, not missing
    assert judged["numeric"][0, 0] == pytest.approx((7 - np.mean(train)) / np.std(train))


def test_a_table_needs_no_images(tmp_path: Path) -> None:
    rows = tuple(Sample(f"r{i}", (), (i % 2,), f"r{i}", numeric=(float(i),)) for i in range(8))
    samples = SampleSet("table", tmp_path, rows, (Target("y", ("0", "1")),), numeric_names=("x",))
    data, plan, _ = open_module(given(tmp_path, samples, batch_size=None))
    assert not plan.has_images
    assert plan.image_size == ()
    batch = data.to_device(take(data, 1)[0], torch.device("cpu"))
    assert "image" not in batch
    assert "present" not in batch
    assert batch["numeric"].shape == (plan.batch_size, 2)


def lateral(root: Path, names: tuple[str, ...]) -> SampleSet:
    rows = tuple(Sample(f"z{i}", (picture(root / f"z{i}.png", i),), (0, 1, 2, 3), group=f"z{i}") for i in range(8))
    return SampleSet("zones", root, rows, tuple(Target(name, tuple("0123")) for name in names))


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("right_sup", "left_sup", "right_inf", "left_inf"), None),
        (("r_sup", "l_sup", "r_inf", "l_inf"), None),
        (("a", "b", "c", "d"), [("a", "b"), ("d", "c")]),
    ],
)
def test_a_mirrored_image_has_its_paired_targets_swapped(
    tmp_path: Path, names: tuple[str, ...], pairs: list[tuple[str, str]] | None
) -> None:
    settings = given(tmp_path, lateral(tmp_path, names), shares=(1, 0, 0), paired_targets=pairs, batch_size=8)
    data, plan, _ = open_module(settings, augment=Shifting())
    assert {frozenset(pair) for pair in plan.paired_targets} == {frozenset({0, 1}), frozenset({2, 3})}
    plain, *_ = open_module(settings, augment=Shifting(mirrors=False))
    kinds = set()
    for batch, other in zip(take(data, 3), take(plain, 3)):
        for image, same, target in zip(batch["image"], other["image"], batch["target"].tolist()):
            mirrored = not torch.equal(image, same)
            assert torch.equal(image, same.flip(-1) if mirrored else same)
            assert target == ([1, 0, 3, 2] if mirrored else [0, 1, 2, 3])
            kinds.add(mirrored)
    assert kinds == {True, False}
    assert next(data.judged_items(["z0"]))["target"].tolist() == [[0, 1, 2, 3]]


def test_pairs_that_cannot_be_are_refused(tmp_path: Path) -> None:
    samples = lateral(tmp_path, ("a", "b", "c", "d"))
    with pytest.raises(ConfigError, match="no target 'x'"):
        open_module(given(tmp_path, samples, paired_targets=[("a", "x")]))
    with pytest.raises(ConfigError, match="several pairs"):
        open_module(given(tmp_path, samples, paired_targets=[("a", "b"), ("b", "c")]))

    class Turning(Shifting):
        def require_sides(self) -> None:
            raise UsageError("cannot be told after Transpose")

    with pytest.raises(UsageError, match="Transpose"):
        open_module(given(tmp_path, samples, paired_targets=[("a", "b")]), augment=Turning())
    views = tuple(replace(sample, images=sample.images * 2) for sample in samples.samples)
    doubled = replace(samples, samples=views, view_names=("u", "v"))
    with pytest.raises(UsageError, match="each view"):
        open_module(given(tmp_path, doubled, paired_targets=[("a", "b")]))


def test_annotations_follow_their_image(tmp_path: Path) -> None:
    base = small_set(tmp_path, 6)
    mask = np.zeros(SIZE, np.uint8)
    mask[:, :5] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    rows = [replace(s, annotation=tmp_path / "mask.png" if i % 2 else None) for i, s in enumerate(base.samples)]
    data, plan, _ = open_module(given(tmp_path, replace(base, samples=tuple(rows)), shares=(1, 0, 0), batch_size=6))
    assert plan.annotated
    batch = take(data, 1)[0]
    for name, found in zip(batch["case_id"], batch["annotation"]):
        if int(name[1:]) % 2:
            assert torch.equal(found, torch.from_numpy(mask / np.float32(255)))
        else:
            assert found.isnan().all()
    cv2.imwrite(str(tmp_path / "mask.png"), np.zeros((40, 10), np.uint8))
    with pytest.raises(DataError, match="another shape"):
        open_module(given(tmp_path, replace(base, samples=tuple(rows))))


def test_boxes_follow_their_image_in_pixels_of_its_file(tmp_path: Path) -> None:
    base = small_set(tmp_path, 6)  # of 12 x 10 pixels
    rows = [replace(s, annotation=Box(2, 3, 5, 6) if i % 2 else Point(4, 7, 1.5)) for i, s in enumerate(base.samples)]
    data, plan, _ = open_module(given(tmp_path, replace(base, samples=tuple(rows)), shares=(1, 0, 0), batch_size=6))
    assert plan.annotated
    batch = take(data, 1)[0]
    box = torch.zeros(12, 10)
    box[3:6, 2:5] = 1
    for name, found in zip(batch["case_id"], batch["annotation"], strict=True):
        if int(name[1:]) % 2:
            assert torch.equal(found, box)
        else:
            assert found.argmax().item() == 7 * 10 + 4
    beyond = [replace(base.samples[0], annotation=Box(50, 3, 60, 6)), *base.samples[1:]]
    with pytest.raises(DataError, match="lies beyond the image of 12 x 10"):
        open_module(given(tmp_path, replace(base, samples=tuple(beyond))))


def test_boxes_of_images_that_are_read_smaller(tmp_path: Path) -> None:
    big = picture(tmp_path / "big.png", 1, (120, 100, 3))
    image_format = ImageFormat(2, (12, 10), 3)
    image = read_for(image_format, big)
    assert image.shape == (24, 20, 3)
    mask = read_annotation(Box(50, 0, 100, 60), image.shape[:2], big)
    expected = np.zeros((24, 20), np.float32)
    expected[:12, 10:] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 1), (np.uint8, 255), (np.uint16, 7)])
def test_masks_of_zero_and_one_value_are_told_by_it(tmp_path: Path, dtype: Any, value: int) -> None:
    image = picture(tmp_path / "image.png", 1)
    drawn = np.zeros(SIZE, dtype)
    drawn[:4] = value
    assert cv2.imwrite(str(tmp_path / "mask.png"), drawn)
    assert np.array_equal(read_annotation(tmp_path / "mask.png", SIZE, image), drawn > 0)
    assert cv2.imwrite(str(tmp_path / "all.png"), np.full(SIZE, 255, np.uint8))
    assert (read_annotation(tmp_path / "all.png", SIZE, image) == 1).all()
    grey = np.full(SIZE, 51, np.uint8)
    grey[:4], grey[4:6] = 255, 0
    assert cv2.imwrite(str(tmp_path / "grey.png"), grey)
    assert np.array_equal(read_annotation(tmp_path / "grey.png", SIZE, image), np.divide(grey, 255, dtype=np.float32))


@pytest.mark.parametrize(("values", "share"), [((0, 1, 2), "0.8"), ((0,), "0.0")])
def test_masks_that_mark_nothing_are_told_before_training(tmp_path: Path, values: tuple[int, ...], share: str) -> None:
    base = small_set(tmp_path, 6)
    drawn = np.resize(np.array(values, np.uint8), SIZE)
    (tmp_path / "masks").mkdir()
    assert cv2.imwrite(str(tmp_path / "masks" / "m.png"), drawn)
    rows = [replace(base.samples[0], annotation=tmp_path / "masks" / "m.png"), *base.samples[1:]]
    with pytest.raises(DataError, match=f"m.png: marks nothing: its largest value is {share} %"):
        open_module(given(tmp_path, replace(base, samples=tuple(rows)), batch_size=2))


def test_metadata_come_with_every_batch(tmp_path: Path) -> None:
    base = small_set(tmp_path, 6)
    rows = tuple(replace(s, metadata=(f"site{i % 2}",)) for i, s in enumerate(base.samples))
    samples = replace(base, samples=rows, metadata_names=("site",))
    data, plan, _ = open_module(given(tmp_path, samples, shares=(1, 0, 0), batch_size=6))
    assert "site" not in str(plan.runtime())
    batch = take(data, 1)[0]
    assert batch["column/site"] == [f"site{int(name[1:]) % 2}" for name in batch["case_id"]]
    assert ImagePlan.from_json(plan.to_json()).metadata_names == ("site",)


def test_what_identifies_the_data(tmp_path: Path) -> None:
    settings = given(tmp_path, small_set(tmp_path))
    first = open_module(settings)[0].describe()
    assert len(first["cases"]) == 20
    assert first["num_train"] + first["num_val"] + first["num_test"] == 20
    again = open_module(settings)[0].describe()
    assert again == first
    picture(tmp_path / "s03.png", 99)
    changed = open_module(settings)[0].describe()
    assert {name for name in first["cases"] if first["cases"][name] != changed["cases"][name]} == {"s03"}
    assert {name for name in first["contents"] if first["contents"][name] != changed["contents"][name]} == {"s03"}
    assert set(first["contents"]) == set(first["cases"])
    assert changed["data_hash"] != first["data_hash"]
    assert changed["split_hash"] == first["split_hash"]


def test_annotations_and_metadata_identify_the_data(tmp_path: Path) -> None:
    base = small_set(tmp_path, 6)
    mask = tmp_path / "masks" / "s03.png"
    picture(mask, 1, SIZE)
    rows = [replace(s, annotation=Box(2, 3, 5, 6), metadata=("north",)) for s in base.samples]
    rows[3] = replace(rows[3], annotation=mask)

    def cases(rows: list[Sample]) -> dict[str, str]:
        samples = replace(base, samples=tuple(rows), metadata_names=("site",))
        data, *_ = open_module(given(tmp_path, samples, batch_size=2))
        return dict(data.describe()["cases"])

    def changed(rows: list[Sample]) -> set[str]:
        now = cases(rows)
        return {name for name in first if first[name] != now[name]}

    first = cases(rows)
    assert changed(rows) == set()
    assert changed([*rows[:2], replace(rows[2], annotation=Box(2, 3, 5, 7)), *rows[3:]]) == {"s02"}
    assert changed([replace(rows[0], metadata=("south",)), *rows[1:]]) == {"s00"}
    picture(mask, 2, SIZE)
    assert changed(rows) == {"s03"}


def test_data_without_annotations_and_metadata_keep_their_identity(tmp_path: Path) -> None:
    data, *_ = open_module(given(tmp_path, small_set(tmp_path)))
    sample = data.found.by_id["s03"]
    values = [sample.targets, sample.group, sample.numeric, sample.categorical]
    expected = digest_of({"images": [data.copies.digests[sample.images[0]]], "values": values})
    assert data.describe()["cases"]["s03"] == expected
