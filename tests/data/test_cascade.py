"""Cascades: what the first stage found is read with a patch, moved with it, and becomes channels."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import ndimage

from medtrain.data.cascade import PreviousStage, read_stage, who_predicts
from medtrain.data.disturb import _remove, dilate, disturb, erode
from medtrain.data.module import SegmentationData
from medtrain.data.patches import pack, unpack
from medtrain.data.plan import Plan
from medtrain.data.prepare import prepare
from medtrain.data.store import Store, case_folder, write_hints
from medtrain.data.volume_data import VolumeData
from medtrain.errors import ConfigError, MedtrainError, UsageError
from medtrain.registry import build
from tests.data.small_data import small_dataset, small_plan
from tests.data.test_plan import LIVER, dataset, fingerprint, plan_of

STAGE = PreviousStage((".",), ("abc",), ("background", "organ", "tumour"), ((1,), (2,)))
SPLIT = {"train": ["case_0", "case_1"], "val": ["case_2"]}


def behind(**settings: Any) -> Plan:
    return replace(small_plan(**settings), cascade=STAGE)


def test_channels_are_one_per_structure() -> None:
    hints = torch.tensor([[[0, 1], [2, 2]]])  # [1, 2, 2]
    assert STAGE.channels(hints).tolist() == [[[[0, 1], [0, 0]], [[0, 0], [1, 1]]]]
    regions = replace(STAGE, structures=((1, 2), (2,)))
    assert regions.channels(hints).tolist() == [[[[0, 1], [1, 1]], [[0, 0], [1, 1]]]]


def test_a_plan_tells_the_channels_of_image_and_network_apart() -> None:
    plan = behind(channels=2)
    assert (plan.in_channels, plan.input_channels) == (2, 4)
    assert plan.runtime()["in_channels"] == 2  # of augmentations
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_maps_are_packed_and_unpacked() -> None:
    plan = small_plan(ignore_index=3)
    label = np.array([[0, 1, 2, 3]] * 3, dtype=np.uint8)
    hints = np.array([[0] * 4, [1] * 4, [200] * 4], dtype=np.uint8)
    packed = torch.from_numpy(pack(label, hints, plan))
    one, other = unpack(packed, plan)
    assert one.tolist() == label.tolist()
    assert other.tolist() == hints.tolist()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, VolumeData, Any]:
    """Cases whose first stage found exactly what is labelled."""
    root = tmp_path_factory.mktemp("cascade")
    dataset = small_dataset(root / "raw", cases=3)
    settings = VolumeData(store=str(root / "store"), num_workers=0, cascade_augment=False, oversample_foreground=1.0)
    prepared = prepare(dataset, settings, small_plan())
    for case_id in prepared.case_ids:
        hints = prepared.case(case_id).read_label()
        write_hints(case_folder(prepared.root, prepared.keys[case_id]), "first", hints, (8, 8, 8))
    return prepared, settings, dataset


def opened(store: tuple[Store, VolumeData, Any], augment: str, **settings: Any) -> SegmentationData:
    prepared, volume_data, dataset = store
    return SegmentationData(
        settings=replace(volume_data, **settings),
        dataset=dataset,
        store=prepared,
        split=SPLIT,
        plan=behind(),
        augment=build("augment", {"name": augment}, in_channels=1, masked_channels=()),
        seed=3,
        hints=dict.fromkeys(prepared.case_ids, "first"),
    )


@pytest.mark.parametrize("augment", ["none", "light", "nnunet"])
def test_hints_move_with_the_patch(store: tuple[Store, VolumeData, Any], augment: str) -> None:
    data = opened(store, augment)
    seen = 0
    for _, batch in zip(range(6), data.train_batches()):
        ready = data.to_device(batch, torch.device("cpu"))
        assert ready["image"].shape == (4, 3, 8, 8, 8)
        assert int(ready["label"].max()) <= 2
        for index in (1, 2):
            assert torch.equal(ready["image"][:, index], (ready["label"] == index).float())
            seen += int((ready["label"] == index).sum())
    assert seen > 100
    data.close()


def test_hints_of_whole_cases(store: tuple[Store, VolumeData, Any]) -> None:
    item = opened(store, "none").evaluation_item("case_2")
    assert item["image"].shape[0] == 3
    for index in (1, 2):
        np.testing.assert_array_equal(item["image"][index].numpy(), (item["label"] == index).astype(np.float32))


def test_mistakes_are_put_into_hints_and_into_nothing_else(store: tuple[Store, VolumeData, Any]) -> None:
    clean, wrong = opened(store, "none"), opened(store, "none", cascade_augment=True)
    differs = 0
    for _, one, other in zip(range(8), clean.train_batches(), wrong.train_batches()):
        a, b = clean.to_device(one, torch.device("cpu")), wrong.to_device(other, torch.device("cpu"))
        assert torch.equal(a["label"], b["label"])
        assert torch.equal(a["image"][:, 0], b["image"][:, 0])
        differs += sum(not torch.equal(x, y) for x, y in zip(a["image"][:, 1:], b["image"][:, 1:]))
    assert 0 < differs < 32  # of 8 batches of 4


def test_balls_grow_and_shrink_as_scipy_has_it() -> None:
    rng = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(rng.normal(size=(20, 22, 24)), 2) > 0.05
    for radius in (1, 2, 5):
        grid = np.mgrid[tuple(slice(-radius, radius + 1) for _ in range(3))]
        ball = (grid**2).sum(0) <= radius**2
        np.testing.assert_array_equal(dilate(mask, radius), ndimage.binary_dilation(mask, ball))
        np.testing.assert_array_equal(erode(mask, radius), ndimage.binary_erosion(mask, ball, border_value=1))
    assert not dilate(np.zeros((2, 2), dtype=bool), 3).any()
    assert erode(np.ones((2, 2), dtype=bool), 3).all()


def test_mistakes_come_as_often_as_in_nnunet() -> None:
    hints = np.zeros((24, 24, 24), dtype=np.uint8)
    hints[4:14, 4:14, 4:14] = 1
    hints[6:9, 6:9, 6:9] = 2
    before = hints.copy()
    rng = np.random.default_rng(1)
    results = [disturb(hints, rng) for _ in range(400)]
    np.testing.assert_array_equal(hints, before)
    untouched = np.mean([result is hints for result in results])
    assert untouched == pytest.approx(0.6 * 0.8, abs=0.08)
    assert all(result.max() <= 2 for result in results)
    assert any(2 not in result and 1 in result for result in results)


def test_one_component_is_removed_unless_it_is_large() -> None:
    hints = np.zeros((10, 10, 10), dtype=np.uint8)
    hints[:, :, :4] = 1  # 40 % of the map
    hints[2:4, 2:4, 7] = hints[7:9, 7:9, 7] = 1
    first, second = np.s_[2:4, 2:4, 7], np.s_[7:9, 7:9, 7]
    left = set()
    for seed in range(20):
        changed = hints.copy()
        _remove(changed, 1, np.random.default_rng(seed))
        assert (changed[:, :, :4] == 1).all()
        left.add((bool(changed[first].any()), bool(changed[second].any())))
    assert left == {(True, False), (False, True)}


def run_folder(path: Path, folds: list[dict[str, list[str]]], fold: int | None = 0, *, weight: float = 1.0) -> Path:
    """The files of a run that a second stage looks at."""
    checkpoint = path / "checkpoints" / "step_00000010"
    checkpoint.mkdir(parents=True)
    save_file({"w": torch.tensor([weight])}, checkpoint / "model.safetensors")
    size = (checkpoint / "model.safetensors").stat().st_size
    meta = {"format": 1, "files": {"model.safetensors": size}, "best": True, "has_ema": False}
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    (path / "plan.json").write_text(json.dumps(small_plan().to_json()))
    (path / "splits.json").write_text(json.dumps(folds))
    (path / "config.yaml").write_text(f"data:\n  fold: {'null' if fold is None else fold}\n")
    return path


FOLDS = [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a", "c"], "val": ["b"]}, {"train": ["a", "b"], "val": ["c"]}]


def test_a_cross_validation_predicts_out_of_fold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(3):
        run_folder(tmp_path / f"fold_{index}", FOLDS, index, weight=float(index))
    (tmp_path / "crossval.json").write_text(json.dumps({"members": ["fold_0", "fold_1", "fold_2"]}))
    stage = read_stage(tmp_path, ("MRI",))
    assert stage.class_names == ("background", "organ", "tumour")
    assert stage.structures == ((1,), (2,))
    assert len(set(stage.digests)) == 3
    with caplog.at_level(logging.WARNING):
        assert who_predicts(stage, tmp_path, ["a", "b", "c", "new"]) == {
            "a": (0,), "b": (1,), "c": (2,), "new": (0, 1, 2)
        }  # fmt: skip
    assert not caplog.records
    assert stage.hint_name((0,)) != stage.hint_name((1,))


def test_a_single_run_warns_of_the_cases_it_was_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_folder(tmp_path, FOLDS)
    stage = read_stage(tmp_path, ("MRI",))
    with caplog.at_level(logging.WARNING):
        assert who_predicts(stage, tmp_path, ["a", "b", "c"]) == {"a": (0,), "b": (0,), "c": (0,)}
    assert "was trained on 2 of 3 cases" in caplog.text
    assert "medtrain crossval" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        names = VolumeData(cascade_from=str(tmp_path))._hints(replace(small_plan(), cascade=stage), ["a", "b", "c"])
    assert names == dict.fromkeys("abc", stage.hint_name((0,)))
    assert not caplog.records  # said when the maps were made


def test_regions_of_the_first_stage_become_its_channels(tmp_path: Path) -> None:
    run_folder(tmp_path, FOLDS)
    plan = replace(small_plan(), regions=((1, 2), (2,)), region_names=("all", "tumour"))
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    assert read_stage(tmp_path, ("MRI",)).structures == ((1, 2), (2,))


def test_a_first_stage_that_has_changed_or_gone_is_told(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", FOLDS)
    stage = read_stage(run, ("MRI",))
    stage.check(run)
    with pytest.raises(MedtrainError, match="needs the one it was trained behind, and that is missing") as error:
        stage.check(tmp_path / "moved")
    assert "data.cascade_from=FOLDER" in str(error.value.hint)
    other = run_folder(tmp_path / "other", FOLDS, weight=2.0)
    with pytest.raises(MedtrainError, match="holds other weights"):
        stage.check(other)


def test_what_cannot_be_a_first_stage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run with a plan"):
        read_stage(tmp_path, ("MRI",))
    second = run_folder(tmp_path / "second", FOLDS)
    (second / "plan.json").write_text(json.dumps(behind().to_json()))
    with pytest.raises(UsageError, match="is a second stage itself"):
        read_stage(second, ("MRI",))
    flat = run_folder(tmp_path / "flat", FOLDS)
    (flat / "plan.json").write_text(json.dumps(small_plan(patch_size=(8, 8)).to_json()))
    with pytest.raises(UsageError, match="does not segment volumes"):
        read_stage(flat, ("MRI",))
    empty = run_folder(tmp_path / "untrained", FOLDS)
    (empty / "checkpoints" / "step_00000010" / "meta.json").unlink()
    with pytest.raises(UsageError, match="there is no trained network"):
        read_stage(empty, ("MRI",))
    (tmp_path / "crossval.json").write_text(json.dumps({"members": []}))
    with pytest.raises(UsageError, match="no fold of it is trained"):
        read_stage(tmp_path, ("MRI",))


def test_only_volumes_at_full_resolution_are_a_second_stage(tmp_path: Path) -> None:
    run = run_folder(tmp_path, FOLDS)
    full = VolumeData(cascade_from=str(run))
    assert full._put_behind(plan_of(LIVER, dataset("mri")), run).cascade == read_stage(run, ("MRI",))
    with pytest.raises(ConfigError, match="this is resolution=low"):
        replace(full, resolution="low")._put_behind(plan_of(LIVER), run)
    slices = plan_of(LIVER, settings=VolumeData(spatial_dims=2))
    with pytest.raises(ConfigError, match="a network of slices"):
        full._put_behind(slices, run)


@pytest.mark.parametrize("names", [("CT", "PET"), ("CT",)])
def test_a_first_stage_of_other_channels_is_told_before_anything_is_prepared(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    run = run_folder(tmp_path, FOLDS)
    plan = plan_of(fingerprint((432, 512, 512), (1.0, 0.8, 0.8), 131, channels=len(names)), dataset(*names))
    with pytest.raises(ConfigError, match=rf"sees the channels MRI, and this network {', '.join(names)}"):
        VolumeData(cascade_from=str(run))._put_behind(plan, run)
