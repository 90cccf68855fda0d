"""The data presets of labelled images: what they choose, and that they read data of their layout."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from medtrain.config.compose import Composed, load_config
from medtrain.data.io.nifti import SourceGrid, write_image
from medtrain.data.sample import Target
from medtrain.registry import build

ZONES = tuple(f"zone_{letter}" for letter in "abcdef")

TASKS = {
    "csv": ("classification", None),
    "image_folder": ("classification", None),
    "medmnist": ("classification", None),
    "aptos": ("ordinal", None),
    "brixia": ("zones", None),
    "bags": ("classification", "mil"),
    "multimodal": ("classification", "multimodal"),
    "three_phase_ct": ("classification", "three_phase_ct"),
    "phantom_images": ("classification", None),
    "phantom_multilabel": ("multilabel", None),
    "phantom_grades": ("ordinal", None),
    "phantom_regression": ("regression", None),
    "phantom_zones": ("zones", None),
    "phantom_multimodal": ("classification", "multimodal_small"),
    "phantom_bags": ("classification", "mil_small"),
    "phantom_views": ("classification", "three_phase_ct"),
    "phantom_survival": ("survival", None),
}


def composed(preset: str, *overrides: str) -> Composed:
    path = [] if preset not in ("csv", "medmnist", "bags", "multimodal", "three_phase_ct") else ["data.path=x.csv"]
    return load_config([f"data={preset}", *path, *overrides])


def built(*overrides: str) -> Any:
    return build("data", load_config(list(overrides)).tree["data"])


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)).save(path)


@pytest.mark.parametrize("preset", TASKS)
def test_a_preset_chooses_the_task_and_the_command_line_wins(preset: str) -> None:
    task, model = TASKS[preset]
    choices = composed(preset).choices
    assert choices["task"] == task
    assert choices["model"] != "unet"
    if model is not None:
        assert choices["model"] == model
    other = composed(preset, "task=generic", "model=tabular", "loss=from_model").choices
    assert (other["task"], other["model"]) == ("generic", "tabular")


def test_aptos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDTRAIN_DATA", raising=False)
    tree = load_config(["data=aptos"]).tree["data"]
    assert tree["path"] == "data/aptos2019-blindness-detection/train.csv"
    (tmp_path / "train.csv").write_text("id_code,diagnosis\nb1,4\na7,0\n")
    for seed, name in enumerate(("a7", "b1")):
        picture(tmp_path / "train_images" / f"{name}.png", seed)
    found = built("data=aptos", f"data.root={tmp_path}").read()
    assert found.targets == (Target("diagnosis", ("no_dr", "mild", "moderate", "severe", "proliferative")),)
    assert [(sample.sample_id, sample.targets) for sample in found.samples] == [("a7", (0,)), ("b1", (4,))]


def brixia_folder(root: Path, names: list[str]) -> Path:
    rows = [
        f"{name}.png,{','.join(str((index + zone) % 4) for zone in range(6))},0" for index, name in enumerate(names)
    ]
    root.mkdir()
    (root / "labels.csv").write_text("\n".join(["image," + ",".join(ZONES) + ",global_score", *rows]))
    for index, name in enumerate(names):
        picture(root / "images" / f"{name}.png", index)
    return root


def test_brixia_grades_are_learnt_in_their_order_for_forty_epochs() -> None:
    tree = load_config(["data=brixia"]).tree
    assert (tree["loss"]["name"], tree["loss"]["form"]) == ("ordinal", "ordered")
    assert (tree["trainer"]["max_epochs"], tree["task"]["score"]) == (40, "expected")
    assert tree == load_config(["data=brixia", "task=zones"]).tree
    other = load_config(["data=brixia", "loss=ce", "trainer=default", "task.score=classes"]).tree
    assert (other["loss"]["name"], other["trainer"]["max_epochs"]) == ("ce", None)
    assert other["task"]["score"] == "classes"


def test_an_unknown_class_has_no_place_among_ordered_grades() -> None:
    assert load_config(["data=phantom_zones"]).tree["loss"]["name"] == "ce"


def test_brixia(tmp_path: Path) -> None:
    follow_up = ["covid-27-day0", "covid-27-day12-PA", "case_f1-PA", "case_f4", "fig-l-a", "fig-l-b", "covid-29"]
    data = built("data=brixia", f"data.root={brixia_folder(tmp_path / 'b', follow_up)}")
    found = data.read()
    assert found.targets == tuple(Target(zone, ("0", "1", "2", "3")) for zone in ZONES)
    assert data.paired_targets == [("zone_a", "zone_d"), ("zone_b", "zone_e"), ("zone_c", "zone_f")]
    groups = {sample.sample_id: sample.group for sample in found.samples}
    assert groups["covid-27-day0"] == groups["covid-27-day12-PA"]
    assert groups["case_f1-PA"] == groups["case_f4"]
    assert groups["fig-l-a"] == groups["fig-l-b"]
    assert len(set(groups.values())) == 4


def test_the_real_radiographs() -> None:
    named = os.environ.get("MEDTRAIN_DATA")
    if not named or not (Path(named) / "brixia_cxr" / "labels.csv").is_file():
        pytest.skip("no real radiographs: set MEDTRAIN_DATA to the folder that holds brixia_cxr")
    found = built("data=brixia").find()
    groups = {sample.sample_id: sample.group for sample in found.sample_set.samples}
    assert len(groups) == 147
    assert len(set(groups.values())) == 109
    assert {groups[f"covid-19-pneumonia-23-day{day}"] for day in (1, 9)} == {"covid-19-pneumonia-23"}
    parts = [{groups[sample_id] for sample_id in ids} for ids in found.split.values()]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    trained = tuple(sample for sample in found.sample_set.samples if sample.sample_id in found.split["train"])
    assert all(min(counts or ()) > 0 for counts in replace(found.sample_set, samples=trained).class_counts())


def test_bags(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("bag,image,label,patient\ns1,a.png,1,p\ns1,b.png,1,p\ns2,c.png,0,q\n")
    for seed, name in enumerate("abc"):
        picture(tmp_path / f"{name}.png", seed)
    found = built("data=bags", f"data.path={tmp_path / 't.csv'}").read()
    assert found.bags
    assert [(sample.sample_id, len(sample.images), sample.targets) for sample in found.samples] == [
        ("s1", 2, (1,)),
        ("s2", 1, (0,)),
    ]


def test_multimodal(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,label,patient,age,sex\na.png,1,p,60,F\n,0,q,,M\n")
    picture(tmp_path / "a.png", 0)
    words = ["data=multimodal", f"data.path={tmp_path / 't.csv'}", "data.numeric=[age]", "data.categorical=[sex]"]
    found = built(*words).read()
    images = [(sample.images, sample.numeric, sample.categorical) for sample in found.samples]
    assert images == [((tmp_path / "a.png",), (60.0,), ("F",)), ((None,), (None,), ("M",))]


def test_three_phase_ct(tmp_path: Path) -> None:
    grid = SourceGrid(affine=((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 2.0, 0), (0, 0, 0, 1.0)), shape=(4, 3, 2))
    for name in ("n", "a"):
        write_image(tmp_path / f"{name}.nii.gz", np.zeros((1, 2, 3, 4), np.int16), grid)
    (tmp_path / "t.csv").write_text("patient,non_contrast,arterial,portal,label\np1,n.nii.gz,a.nii.gz,,malignant\n")
    data = built("data=three_phase_ct", f"data.path={tmp_path / 't.csv'}")
    found = data.read()
    assert found.view_names == ("non_contrast", "arterial", "portal")
    assert found.samples[0].images == (tmp_path / "n.nii.gz", tmp_path / "a.nii.gz", None)
    assert data.window == "abdomen"
