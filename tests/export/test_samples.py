"""The patch that exported files are compared on is what prediction would feed the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medtrain import registry
from medtrain.data.case import Case, Dataset
from medtrain.errors import MedtrainError
from medtrain.export.samples import middle, scan_patch


def test_the_middle_is_cut_out_or_padded() -> None:
    image = np.arange(1, 13, dtype=np.float32).reshape(1, 2, 6)  # [C, H, W]
    # H 2 -> 4: one row of zeros on each side; W 6 -> 3: columns 1, 2, 3
    expected = [[0, 0, 0], [2, 3, 4], [8, 9, 10], [0, 0, 0]]
    np.testing.assert_array_equal(middle(image, (4, 3))[0], expected)


class _Source:
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def discover(self) -> Dataset:
        return self.dataset


def test_a_scan_is_normalised_as_the_plan_says(
    make_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    voxels = np.full((10, 8, 6), 80.5, dtype=np.float32)  # x, y, z at the plan's spacing
    voxels[0, 0, 0] = 1000.0  # clipped to 240
    paths = []
    for channel in range(2):
        paths.append(tmp_path / f"scan_{channel}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.75, 0.75, 2.5, 1.0])), paths[-1])
    case = Case(case_id="liver_3", images=tuple(paths), label=None, group="liver_3")
    dataset = Dataset("toy", tmp_path, ("CT", "PET"), {"background": 0}, None, (case,), ())
    monkeypatch.setattr("medtrain.export.samples.build", lambda group, config: _Source(dataset))

    case_id, patch = scan_patch(run.config, run.plan)

    assert case_id == "liver_3"
    assert tuple(patch.shape) == (2, 6, 8, 10)
    # D is z, H is y, W is x, so the corner voxel stays the first one; (240 - 80.5) / 39.25 and 0
    assert patch[0, 0, 0, 0] == pytest.approx((240 - 80.5) / 39.25)
    assert patch[0, 0, 0, 1] == 0
    assert float(patch[1].mean()) == pytest.approx(0, abs=1e-5)
    assert float(patch[1].std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_absent_data_is_an_error_that_says_so(make_run: Callable[..., Any], tmp_path: Path) -> None:
    run = make_run()
    run.config["data"] = {"name": "msd", **registry.get("data", "msd").defaults(), "root": str(tmp_path / "absent")}
    with pytest.raises(MedtrainError, match="absent"):
        scan_patch(run.config, run.plan)
