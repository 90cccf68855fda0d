"""The first stage of a cascade: what it finds comes to the grid of the second, and is found once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from medtrain.data.cascade import PreviousStage
from medtrain.data.geometry import CaseGeometry
from medtrain.data.io.nifti import read_image
from medtrain.data.prepare import prepare
from medtrain.data.preprocess import prepare_image
from medtrain.data.store import case_folder, hints_file
from medtrain.data.volume_data import VolumeData
from medtrain.engine.precision import Precision
from medtrain.errors import MedtrainError
from medtrain.inference.cascade import FirstStage, make_hints
from medtrain.inference.sliding_window import SlidingWindow
from medtrain.losses.dice import DiceCELoss
from medtrain.tasks.segmentation import Segmentation
from tests.data.small_data import small_dataset, small_plan

CPU = torch.device("cpu")
STAGE = PreviousStage((".",), ("abc",), ("background", "organ", "tumour"), ((1,), (2,)))


class Bright(torch.nn.Module):
    """Takes voxels above the mean for the organ and counts how often it is asked."""

    asked = 0

    def forward(self, image: Tensor) -> Tensor:
        self.asked += 1
        return torch.cat([-image, image, image * 0 - 100], dim=1)


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FirstStage, Bright]:
    plan = small_plan(spacing=(2.0, 2.0, 2.0), patch_size=(16, 16, 16))
    task = Segmentation(loss=DiceCELoss(num_classes=3), inference=SlidingWindow(mirror=False), plan=plan, device=CPU)
    model = Bright()
    run: Any = SimpleNamespace(model=model, task=task, plan=plan, precision=Precision("fp32", CPU))
    monkeypatch.setattr(PreviousStage, "check", lambda self, root: None)
    stage = FirstStage(tmp_path, STAGE)

    def opened(members: tuple[int, ...]) -> None:
        stage._runs = [run]

    monkeypatch.setattr(stage, "_open", opened)
    return stage, model


def test_coarse_maps_come_to_the_fine_grid_as_channels(first: tuple[FirstStage, Bright], tmp_path: Path) -> None:
    stage, model = first
    case = small_dataset(tmp_path / "raw", cases=1, shape=(24, 24, 24)).cases[0]
    fine = prepare_image(read_image(case.images), (1.0, 1.0, 1.0))
    image = torch.zeros(1, *fine.geometry.resampled_shape)

    seen = stage.add_channels(image, case.images, fine.geometry)

    assert seen.shape == (3, 24, 24, 24)
    organ, tumour = seen[1].numpy() > 0, seen[2].numpy() > 0
    assert not tumour.any()
    bright = np.zeros((24, 24, 24), dtype=bool)
    bright[6:18, 6:18, 6:18] = True  # as `small_case` draws it
    assert organ[bright].all()  # and a border of half a coarse voxel, which is above the mean, too
    assert 2 * (organ & bright).sum() / (organ.sum() + bright.sum()) > 0.75

    stage.add_channels(image, case.images, fine.geometry)
    assert model.asked == 1
    coarse = CaseGeometry.between(fine.geometry.grid, fine.geometry.crop, (1.5, 1.5, 1.5))
    assert stage.predict(case.images, coarse).shape == coarse.resampled_shape
    assert model.asked == 2


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"max_memory": "40MiB", "window_batch": 3}, {"max_memory": "40MiB", "window_batch": 3}),
        ({"max_memory": None, "window_batch": 1}, {"max_memory": "2GiB", "window_batch": 1}),
        ({"max_memory": None, "window_batch": None}, {"max_memory": "2GiB", "window_batch": None}),
    ],
)
@pytest.mark.parametrize("command", ["predict", "train"])
def test_the_bounds_of_the_second_stage_hold_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, given: dict[str, Any], taken: dict[str, Any]
) -> None:
    own = {"name": "sliding_window", "overlap": 0.25, "max_memory": "2GiB", "window_batch": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"inference": own, "seed": 3}))
    seen: list[Any] = []

    def opened(folder: Path, config: Any, **options: Any) -> Any:
        seen.append(config)
        raise MedtrainError("enough")

    monkeypatch.setattr("medtrain.engine.restore.load_run", opened)
    monkeypatch.setattr(PreviousStage, "check", lambda self, root: None)
    monkeypatch.setattr("medtrain.inference.cascade.who_predicts", lambda stage, root, cases, **more: {"case_0": (0,)})
    dataset = small_dataset(tmp_path / "raw", cases=1)
    plan = replace(small_plan(), cascade=STAGE)
    config = {
        "data": {"cascade_from": str(tmp_path)},
        "trainer": {"device": "cpu"},
        "inference": {"overlap": 0.75, **given},
    }
    if command == "train":
        store = prepare(dataset, VolumeData(store=str(tmp_path / "store")), plan)
        with pytest.raises(MedtrainError, match="enough"):
            make_hints(config, plan, store, ["case_0"])
    else:
        run: Any = SimpleNamespace(plan=plan, config=config, device=CPU)
        stage = FirstStage.behind(run)
        assert stage is not None
        geometry = prepare_image(read_image(dataset.cases[0].images), (1.0, 1.0, 1.0)).geometry
        with pytest.raises(MedtrainError, match="enough"):
            stage.predict(dataset.cases[0].images, geometry)
    assert seen == [{"inference": {**own, **taken}, "seed": 3}]


def test_damaged_maps_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small_dataset(tmp_path / "raw", cases=2)
    plan = replace(small_plan(), cascade=STAGE)
    store = prepare(dataset, VolumeData(store=str(tmp_path / "store")), plan)
    members = {"case_0": (0,), "case_1": (0,)}
    monkeypatch.setattr(PreviousStage, "check", lambda self, root: None)
    monkeypatch.setattr("medtrain.inference.cascade.who_predicts", lambda stage, root, cases, **more: members)
    monkeypatch.setattr(
        FirstStage, "predict", lambda self, files, geometry, members: np.ones(geometry.resampled_shape, np.uint8)
    )
    config = {"data": {"cascade_from": str(tmp_path)}, "trainer": {"device": "cpu"}, "inference": {}}
    assert make_hints(config, plan, store, list(members)) == 2
    assert make_hints(config, plan, store, list(members)) == 0
    hints = case_folder(store.root, store.keys["case_1"]) / hints_file(STAGE.hint_name((0,)))
    content = hints.read_bytes()
    hints.write_bytes(content[: len(content) // 2])
    assert make_hints(config, plan, store, list(members)) == 1
    assert hints.read_bytes() == content


def test_a_store_that_may_only_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = small_dataset(tmp_path / "raw", cases=1)
    plan = replace(small_plan(), cascade=STAGE)
    store = prepare(dataset, VolumeData(store=str(tmp_path / "store")), plan)
    monkeypatch.setattr(PreviousStage, "check", lambda self, root: None)
    monkeypatch.setattr("medtrain.inference.cascade.who_predicts", lambda stage, root, cases: {"case_0": (0,)})
    monkeypatch.setattr("medtrain.inference.cascade.os.access", lambda path, mode: False)
    config = {"data": {"cascade_from": str(tmp_path)}, "trainer": {"device": "cpu"}, "inference": {}}
    with pytest.raises(MedtrainError, match="1 of them belong to another user") as error:
        make_hints(config, plan, store, ["case_0"])
    assert error.value.hint == "set data.store to a folder of your own"
