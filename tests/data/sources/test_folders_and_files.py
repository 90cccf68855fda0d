from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from medtrain.config.compose import load_config
from medtrain.data.sources.image_folder import ImageFolderData
from medtrain.data.sources.medmnist import MedmnistData
from medtrain.errors import UsageError
from medtrain.registry import build
from tests.data.sources.medmnist_files import SIZES, write_medmnist


def test_a_folder_of_classes(tmp_path: Path) -> None:
    for index, name in enumerate(["cat/p1_a", "cat/p1_b", "dog/p2_a", "dog/p3_a"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Pillow.fromarray(np.full((8, 8), 10 * index, np.uint8)).save(tmp_path / f"{name}.png")
    config = load_config(["data=image_folder", f"data.root={tmp_path}", r"data.group_pattern='^(p\d)_'"])
    data = build("data", config.tree["data"])
    found = data.read()
    assert [(s.sample_id, s.targets, s.group) for s in found.samples] == [
        ("cat/p1_a", (0,), "p1"),
        ("cat/p1_b", (0,), "p1"),
        ("dog/p2_a", (1,), "p2"),
        ("dog/p3_a", (1,), "p3"),
    ]


@pytest.mark.parametrize("root", [None, "nowhere"])
def test_where_the_images_are_is_asked(root: str | None) -> None:
    with pytest.raises(UsageError, match=r"data\.root") as error:
        ImageFolderData(root=root).read()
    assert "one folder of images per class" in str(error.value.hint)


def test_medmnist_keeps_its_parts(tmp_path: Path) -> None:
    path = write_medmnist(tmp_path / "pneumoniamnist.npz")
    config = load_config(["data=medmnist", f"data.path={path}", "data.class_names=[normal,pneumonia]"])
    data = build("data", config.tree["data"])
    found = data.find()
    assert found.dataset_name == "pneumoniamnist"
    assert {part: len(ids) for part, ids in found.split.items()} == SIZES
    assert all(sample_id.startswith(part) for part, ids in found.split.items() for sample_id in ids)
    assert found.sample_set.targets[0].classes == ("normal", "pneumonia")


def test_medmnist_of_several_findings(tmp_path: Path) -> None:
    path = write_medmnist(tmp_path / "chest.npz", num_labels=3)
    found = MedmnistData(path=str(path), target_names=("mass", "nodule", "hernia")).read()
    assert [target.target_name for target in found.targets] == ["mass", "nodule", "hernia"]
    assert {target.classes for target in found.targets} == {("0", "1")}
    with pytest.raises(UsageError, match="has 3 label columns, but 2 names are given"):
        MedmnistData(path=str(path), target_names=("mass", "nodule")).read()
