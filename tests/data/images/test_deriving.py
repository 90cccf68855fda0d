from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from medtrain.data.images.deriving import IMAGENET_MEAN
from medtrain.data.images.found import divide
from medtrain.data.images.plan import ImagePlan
from medtrain.data.sample import Sample, SampleSet, Target
from medtrain.data.source import Machine
from medtrain.errors import ConfigError, MedtrainError, UsageError
from medtrain.registry import build
from tests.data.images.small_sets import CPU, Given, open_module, picture, small_set


def plan_of(settings: Given, machine: Machine = CPU, **model: Any) -> tuple[ImagePlan, dict[str, Any]]:
    plan, values = settings.derive(settings.find(), machine, model=model, augment={})
    return plan, {value.key: value.value for value in values}


def of_shape(root: Path, shape: tuple[int, ...], count: int = 8) -> SampleSet:
    rows = []
    for i in range(count):
        array = np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)
        path = root / f"{i}.png"
        cv2.imwrite(str(path), array)
        rows.append(Sample(str(i), (path,), (i % 2,), str(i)))
    return SampleSet("set", root, tuple(rows), (Target("y", ("0", "1")),))


@pytest.mark.parametrize(
    ("shape", "size", "channels"),
    [((28, 28), (28, 28), 1), ((250, 300, 3), (224, 224), 3), ((230, 100), (96, 96), 1), ((40, 36, 3), (40, 36), 3)],
)
def test_the_size_follows_the_images(
    tmp_path: Path, shape: tuple[int, ...], size: tuple[int, int], channels: int
) -> None:
    plan, values = plan_of(Given(samples=of_shape(tmp_path, shape)))
    assert plan.image_size == size
    assert plan.in_channels == channels
    assert plan.spatial_dims == 2
    assert values["data.image_size"] == size
    assert values["data.channels"] == channels
    assert values["data.cache"] is bool(np.prod(shape) > 2**16)  # PNG: the small ones are read as fast as copies
    assert plan.reasons["data.image_size"]
    assert plan.reasons["data.channels"]


def test_what_is_given_is_taken(tmp_path: Path) -> None:
    settings = Given(samples=of_shape(tmp_path, (28, 28)), image_size=64, channels=3, batch_size=5, cache=True)
    plan, values = plan_of(settings)
    assert (plan.image_size, plan.in_channels, plan.batch_size) == ((64, 64), 3, 5)
    assert not {"data.image_size", "data.channels", "data.batch_size", "data.cache"} & set(values)
    with pytest.raises(ConfigError, match="3 values, but the images have 2 axes"):
        plan_of(replace(settings, image_size=(8, 8, 8)))


def test_files_that_take_long_to_decode_are_worth_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those packed without loss; JPEG would become many times larger."""
    few = of_shape(tmp_path, (240, 260, 3))
    assert plan_of(Given(samples=few))[1]["data.cache"] is True
    rows, columns = np.mgrid[0:240, 0:260]
    smooth = np.stack([rows, columns, rows // 2], axis=-1).astype(np.uint8)
    samples = []
    for sample in few.samples:
        path = tmp_path / f"{sample.sample_id}.jpg"
        cv2.imwrite(str(path), smooth)
        samples.append(replace(sample, images=(path,)))
    assert plan_of(Given(samples=replace(few, samples=tuple(samples))))[1]["data.cache"] is False
    monkeypatch.setattr("medtrain.data.images.deriving._MOST_COPIED", 8 * smooth.nbytes - 1)
    assert plan_of(Given(samples=few))[1]["data.cache"] is False


def test_large_images_are_worth_copies(tmp_path: Path) -> None:
    settings = Given(samples=of_shape(tmp_path, (200, 220)), image_size=32)
    assert plan_of(settings)[1]["data.cache"] is True


def test_normalisation_follows_the_weights(tmp_path: Path) -> None:
    settings = Given(samples=of_shape(tmp_path, (30, 30, 3)), shares=(1, 0, 0))
    plan, _ = plan_of(settings, weights="resnet.pt")
    assert plan.mean == IMAGENET_MEAN
    plan, values = plan_of(settings, weights=None)
    pixels = np.stack([cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in sorted(tmp_path.glob("*.png"))]) / 255
    np.testing.assert_allclose(plan.mean, pixels.mean(axis=(0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(plan.std, pixels.std(axis=(0, 1, 2)), atol=1e-5)
    assert values["data.normalization"] == [list(plan.mean), list(plan.std)]
    assert plan_of(replace(settings, normalization="half"))[0].mean == (0.5,) * 3
    assert plan_of(replace(settings, normalization="none"))[0].std == (1.0,) * 3
    grey, _ = plan_of(replace(settings, normalization="imagenet", channels=1))
    assert grey.mean == pytest.approx((0.449,), abs=1e-3)
    assert grey.std == pytest.approx((0.226,), abs=1e-3)


def hf_folder(folder: Path, **content: Any) -> str:
    folder.mkdir()
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("channels", [1, 3])
def test_size_and_normalisation_follow_timms_weights(tmp_path: Path, channels: int) -> None:
    settings = Given(samples=of_shape(tmp_path, (300, 300)), shares=(1, 0, 0), channels=channels)
    # timm's test_vit.r160_in1k: 160 pixels, mean and deviation 0.5
    plan, values = plan_of(settings, arch="test_vit", weights="timm")
    assert plan.image_size == (160, 160)
    assert (plan.mean, plan.std) == ((0.5,) * channels, (0.5,) * channels)
    assert values["data.image_size"] == (160, 160)
    assert "test_vit.r160_in1k" in plan.reasons["data.image_size"]
    assert "test_vit.r160_in1k" in plan.reasons["data.normalization"]
    given, _ = plan_of(replace(settings, image_size=64, normalization="imagenet"), arch="test_vit", weights="timm")
    assert given.image_size == (64, 64)
    assert given.mean[0] == pytest.approx(0.485 if channels == 3 else 0.449, abs=1e-3)
    assert plan_of(settings, arch="test_vit", weights=None)[0].image_size == (224, 224)


def test_a_bare_file_tells_its_size_by_position_embeddings(tmp_path: Path) -> None:
    settings = Given(samples=of_shape(tmp_path, (300, 300, 3)), shares=(1, 0, 0))
    for name, tokens in (("class_token.pth", 785), ("no_class_token.pth", 784)):
        torch.save({"model": {"pos_embed": torch.zeros(1, tokens, 8)}}, tmp_path / name)
        plan, _ = plan_of(settings, arch="vit_small_patch14_reg4_dinov2", weights=str(tmp_path / name))
        assert plan.image_size == (392, 392)  # 28 x 28 patches of 14 pixels
        assert plan.mean == IMAGENET_MEAN
        assert name in plan.reasons["data.image_size"]
    # a tag says which weights they are
    plan, _ = plan_of(settings, arch="vit_small_patch16_224.augreg_in1k", weights=str(tmp_path / "absent.pth"))
    assert (plan.image_size, plan.mean) == ((224, 224), (0.5, 0.5, 0.5))


def test_a_folder_of_huggingface_tells_what_its_weights_expect(tmp_path: Path) -> None:
    samples = of_shape(tmp_path, (300, 300, 3))
    settings = Given(samples=samples, shares=(1, 0, 0))
    # RAD-DINO's own file
    folder = hf_folder(
        tmp_path / "rad-dino",
        crop_size={"height": 518, "width": 518}, size={"shortest_edge": 518},
        image_mean=[0.5307, 0.5307, 0.5307], image_std=[0.2583, 0.2583, 0.2583],
    )  # fmt: skip
    plan, _ = plan_of(settings, arch="vit_base_patch14_dinov2", weights=folder)
    assert plan.image_size == (518, 518)
    assert (plan.mean, plan.std) == ((0.5307,) * 3, (0.2583,) * 3)
    assert plan.reasons["data.normalization"] == "rad-dino/preprocessor_config.json says so"
    folder = hf_folder(tmp_path / "edge", size={"shortest_edge": 256}, image_mean=[0.1], image_std=[0.2])
    plan, _ = plan_of(replace(settings, channels=1), arch="resnet18", weights=folder)
    assert (plan.image_size, plan.mean, plan.std) == ((256, 256), (0.1,), (0.2,))
    timm_folder = tmp_path / "timm"
    timm_folder.mkdir()
    config = {"pretrained_cfg": {"input_size": [3, 96, 128], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}}
    (timm_folder / "config.json").write_text(json.dumps(config))
    plan, _ = plan_of(settings, arch="resnet18", weights=str(timm_folder))
    assert (plan.image_size, plan.mean) == ((96, 128), (0.1, 0.2, 0.3))
    (timm_folder / "config.json").write_text("{")
    with pytest.raises(MedtrainError, match=r"config\.json does not say"):
        plan_of(settings, arch="resnet18", weights=str(timm_folder))


def test_statistics_are_of_the_training_part(tmp_path: Path) -> None:
    samples = of_shape(tmp_path, (16, 16))
    rows = [replace(sample, part="val" if i == 0 else "train") for i, sample in enumerate(samples.samples)]
    settings = Given(samples=replace(samples, samples=tuple(rows)))
    before, _ = plan_of(settings)
    cv2.imwrite(str(tmp_path / "0.png"), np.full((16, 16), 255, np.uint8))
    after, _ = plan_of(settings)
    assert before == after


def test_the_batch_follows_the_machine(tmp_path: Path) -> None:
    samples = of_shape(tmp_path, (16, 16))
    many = tuple(replace(samples.samples[i % 8], sample_id=str(i), group=str(i)) for i in range(2000))
    settings = Given(samples=replace(samples, samples=many), duplicates="ignore")
    gpu = Machine("cuda", 24.0, 8)
    assert plan_of(settings)[0].batch_size == 64
    assert plan_of(settings, gpu)[0].batch_size == 128
    assert plan_of(replace(settings, image_size=224))[0].batch_size == 32
    assert plan_of(replace(settings, image_size=512), gpu)[0].batch_size == 16
    assert plan_of(Given(samples=samples))[0].batch_size == 4  # few samples


def test_a_plan_survives_json(tmp_path: Path) -> None:
    base = small_set(tmp_path, 8)
    rows = tuple(replace(s, numeric=(1.5 * i,), categorical=("ab"[i % 2],)) for i, s in enumerate(base.samples))
    targets = (Target("left_y", ("a", "b")), Target("right_y", ("a", "b")), Target("age", None))
    rows = tuple(replace(s, targets=(s.targets[0], s.targets[0], 3.0)) for s in rows)
    samples = replace(base, samples=rows, targets=targets, numeric_names=("n",), categorical_names=("c",))
    settings = Given(samples=samples, window=None)
    plan, _ = plan_of(settings)
    assert plan.paired_targets == ((0, 1),)
    assert settings.read_plan(json.loads(json.dumps(plan.to_json()))) == plan
    runtime = plan.runtime()
    assert runtime["num_numeric"] == 2
    assert runtime["category_sizes"] == (4,)
    assert runtime["class_counts"] == [plan.targets[0].counts] * 2 + [()]
    assert runtime["num_classes"] == 2


def test_zones_of_the_lungs_are_pairs_unless_it_is_said_that_there_are_none(tmp_path: Path) -> None:
    base = small_set(tmp_path, 8)
    rows = tuple(replace(sample, targets=(0, 1, 0, 1, 0, 1)) for sample in base.samples)
    samples = replace(base, samples=rows, targets=tuple(Target(name, ("0", "1")) for name in "ABCDEF"))
    plan, values = plan_of(Given(samples=samples))
    assert plan.paired_targets == ((0, 3), (1, 4), (2, 5))
    assert values["data.paired_targets"] == [["A", "D"], ["B", "E"], ["C", "F"]]
    assert plan_of(Given(samples=samples, paired_targets=[]))[0].paired_targets == ()


def test_splits_are_saved_and_found_again(tmp_path: Path) -> None:
    settings = Given(samples=small_set(tmp_path, 30))
    found = settings.find()
    sizes = {part: len(ids) for part, ids in found.split.items()}
    # 30 samples of 15 patients; 70/15/15 is 21/4.5/4.5
    assert sizes["train"] in (20, 22)
    assert sizes["val"] in (4, 6)
    assert sizes["test"] in (4, 6)
    groups = [{found.by_id[name].group for name in ids} for ids in found.split.values()]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    found.save_splits(tmp_path / "splits.json")
    other = replace(settings, split_seed=7)
    assert other.find().split != found.split
    assert other.find(splits=tmp_path / "splits.json").split == found.split


def test_parts_of_the_set_and_folds(tmp_path: Path) -> None:
    samples = small_set(tmp_path, 20)
    options: dict[str, Any] = {"splits": None, "num_folds": 4, "shares": (0.8, 0.2, 0), "seed": 1}
    folds = [divide(samples, fold=fold, **options).split for fold in range(4)]
    assert sorted(name for fold in folds for name in fold["val"]) == [s.sample_id for s in samples.samples]
    assert all(fold["test"] == [] for fold in folds)
    with pytest.raises(UsageError, match="no sample is left to train on"):
        divide(samples, fold=None, **{**options, "shares": (0, 1, 0)})
    with pytest.raises(UsageError, match="there are 4 folds"):
        divide(samples, fold=4, **options)
    rows = tuple(replace(s, part="test" if i > 15 else "train") for i, s in enumerate(samples.samples))
    named = replace(samples, samples=rows)
    own = divide(named, fold=None, **options).split
    assert own["test"] == ["s16", "s17", "s18", "s19"]
    assert len(own["val"]) in (2, 4)
    assert len(own["train"]) >= 12
    kept = divide(named, fold=0, **options).split
    assert kept["test"] == own["test"]
    assert not set(kept["val"]) & set(kept["test"])
    everything = divide(samples, fold=None, **{**options, "shares": (1, 0, 0)}).split
    assert len(everything["train"]) == 20
    assert everything["val"] == []


def test_grey_and_colour_files_in_one_set(tmp_path: Path) -> None:
    base = small_set(tmp_path, 8)
    picture(tmp_path / "s01.png", 50, (12, 10))
    settings = Given(samples=base, store=str(tmp_path / "store"), shares=(1, 0, 0))
    data, plan, _ = open_module(settings)
    assert plan.in_channels == 3
    assert plan.reasons["data.channels"] == "the images are grey and colour"
    grey = next(data.judged_items(["s01"]))["image"][0]
    assert (grey[0] == grey[1]).all()
    assert (grey[0] == grey[2]).all()


def test_classes_that_a_part_lacks_are_told_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = small_set(tmp_path, 12, classes=3)
    rows = tuple(
        replace(s, group=s.sample_id, targets=(0 if i > 7 else i % 3,), part="val" if i > 7 else "train")
        for i, s in enumerate(base.samples)
    )
    with caplog.at_level(logging.WARNING):
        Given(samples=replace(base, samples=rows)).find()
    assert caplog.messages == ["val has no sample of class c1 of y, c2 of y"]


def test_a_table_alone_can_be_built_for(tmp_path: Path) -> None:
    rows = tuple(Sample(f"r{i}", (), (i % 2,), f"r{i}", numeric=(float(i),)) for i in range(8))
    samples = SampleSet("table", tmp_path, rows, (Target("y", ("0", "1")),), numeric_names=("x",))
    plan, _ = plan_of(Given(samples=samples))
    known = {name: plan.runtime()[name] for name in ("image_size", "spatial_dims", "in_channels")}
    assert known == {"image_size": (), "spatial_dims": 2, "in_channels": 0}
    for name in ("images", "images_none"):
        assert build("augment", {"name": name}, **known).in_channels == 0
