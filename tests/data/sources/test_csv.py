from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from medtrain.config.compose import load_config
from medtrain.data.columns import TargetColumn
from medtrain.data.sample import Target
from medtrain.data.sources.csv import CsvData
from medtrain.errors import ConfigError, DataError, UsageError
from medtrain.registry import build
from tests.tasks.stubs import plan, target


def built(*overrides: str) -> Any:
    return build("data", load_config(list(overrides)).tree["data"])


def folder(root: Path, text: str, *files: str) -> Path:
    """A table and pictures, each with noise of its own."""
    root.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (12, 12), dtype=np.uint8)
        Pillow.fromarray(noise).save(root / name)
    path = root / "labels.csv"
    path.write_text(text)
    return path


def test_the_simplest_command(tmp_path: Path) -> None:
    path = folder(tmp_path / "eyes", "file,diagnosis,patient\na.png,2,p\nb.png,0,q\n", "a.png", "b.png")
    data = built("data=csv", f"data.path={path}", "data.images=file", "data.targets=diagnosis", "data.group=patient")
    found = data.read()
    assert found.set_name == "eyes"
    assert found.targets == (Target("diagnosis", ("0", "1", "2")),)
    assert [(s.sample_id, s.targets, s.group) for s in found.samples] == [("a", (2,), "p"), ("b", (0,), "q")]


def test_every_option_from_the_command_line(tmp_path: Path) -> None:
    text = "id;eye;age;sex;grade;macula;part;who\n1;L;60,5;F;mild;;train;S1-x\n2;R;;M;none;7,25;test;S2-y\n"
    folder(tmp_path / "img", "", "1/L.jpg.png", "2/R.jpg.png")
    path = tmp_path / "t.tsv"
    path.write_text(text, encoding="utf-16")
    found = built(
        "data=csv",
        f"data.path={path}",
        f"data.root={tmp_path}",
        "data.separator=;",
        "data.encoding=utf-16",
        "data.image_pattern='{id}/{eye}'",
        "data.image_folder=img",
        "data.image_suffix=.jpg.png",
        "data.targets=[{column: grade, classes: [none, mild], names: [g0, g1]}, {column: macula, kind: number}]",
        "data.sample_id=id",
        "data.group=who",
        "data.group_pattern='^(S\\d)'",
        "data.part=part",
        "data.numeric=[age]",
        "data.categorical=[sex]",
        "data.decimal=','",
    ).read()
    assert found.set_name == "t"
    assert found.targets == (Target("grade", ("g0", "g1")), Target("macula", None))
    one, two = found.samples
    assert (one.targets, one.group, one.part, one.numeric, one.categorical) == (
        (1, None),
        "S1",
        "train",
        (60.5,),
        ("F",),
    )
    assert (two.targets, two.group, two.part, two.numeric, two.categorical) == (
        (0, 7.25),
        "S2",
        "test",
        (None,),
        ("M",),
    )
    assert one.images == (tmp_path / "img" / "1" / "L.jpg.png",)


def test_a_table_of_new_samples_is_read_as_the_one_of_training(tmp_path: Path) -> None:
    path = folder(tmp_path / "new", "", "a;b.png")
    path.write_text("file;note\n'a;b.png';\u00fc\n".replace("'", '"'), encoding="utf-16")
    data = CsvData(path="old.csv", images=("file",), targets="y", separator=";", encoding="utf-16")
    found = data.read_new(path, plan(target("0", "1")))
    assert [sample.images for sample in found.samples] == [(tmp_path / "new" / "a;b.png",)]


def test_targets_by_name_share_settings(tmp_path: Path) -> None:
    path = folder(tmp_path, "f,a,b\na.png,3,\nb.png,0,1\n", "a.png", "b.png")
    words = ["data=csv", f"data.path={path}", "data.images=[f]", "data.targets=[a,b]"]
    zones = built(*words, "data.target_classes=[0,1,2,3]", "data.missing_class=unknown").read()
    assert zones.targets == tuple(Target(name, ("0", "1", "2", "3", "unknown")) for name in "ab")
    assert [sample.targets for sample in zones.samples] == [(3, 4), (0, 1)]
    numbers = built(*words, "data.target_kind=number").read()
    assert [target.classes for target in numbers.targets] == [None, None]
    assert [sample.targets for sample in numbers.samples] == [(3.0, None), (0.0, 1.0)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"data\.targets is not set"),
        ({"targets": ("y", "y")}, "names 'y' twice"),
        ({"targets": (TargetColumn(column="y"),), "target_kind": "number"}, r"data\.target_kind is for targets given"),
        ({"targets": (TargetColumn(column="y"),), "target_classes": ("0",)}, r"data\.target_classes is for"),
        ({"targets": (TargetColumn(column="y"),), "missing_class": "u"}, r"data\.missing_class is for"),
    ],
)
def test_settings_without_effect_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CsvData(path="t.csv", images=("f",), **settings).read()


def test_a_wrong_setting_of_a_target_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(["data=csv", "data.path=t.csv", "data.targets=[{column: a, kinds: number}]"])
    (problem,) = error.value.problems
    assert (problem.where, problem.hint) == ("data.targets[0].kinds", "did you mean `data.targets[0].kind`?")


def test_a_path_is_required() -> None:
    with pytest.raises(ConfigError, match=r"data\.path: required, not set"):
        load_config(["data=csv"])


def test_every_missing_file_is_listed_at_once(tmp_path: Path) -> None:
    path = folder(tmp_path, "f,y\na.png,0\nb.png,1\nc.png,1\n", "b.png")
    with pytest.raises(DataError) as error:
        CsvData(path=str(path), images=("f",), targets="y").read()
    assert [(problem.where, problem.message) for problem in error.value.problems] == [
        ("a.png", "no such file (line 2)"),
        ("c.png", "no such file (line 4)"),
    ]


def test_masks_of_what_matters(tmp_path: Path) -> None:
    path = folder(tmp_path, "f,y,m\na.png,0,\nb.png,1,b_m.png\nc.png,1,c_m.png\n", "a.png", "b.png", "c.png", "b_m.png")
    data = CsvData(path=str(path), images=("f",), targets="y", annotation="m")
    with pytest.raises(DataError, match=r"c_m\.png: no such file \(line 4\)"):
        data.read()
    folder(tmp_path, path.read_text(), "c_m.png")
    assert [sample.annotation for sample in data.read().samples] == [None, tmp_path / "b_m.png", tmp_path / "c_m.png"]
    with pytest.raises(UsageError, match="an annotation is of the one image"):
        CsvData(path=str(path), images=("f",), targets="y", annotation="m", bag="y").read()
