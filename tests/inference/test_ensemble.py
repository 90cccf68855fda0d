"""Several runs that decide together, and those that cannot."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from medtrain.data.plan import ChannelNormalization
from medtrain.errors import UsageError
from medtrain.inference.predictor import Predictor
from medtrain.metrics.lesions import LesionRule
from tests.inference.runs import LABEL_VALUES, read, run, voxels, write_scan


class Likes(nn.Module):
    """Logits that hang on the last channel with a weight of their own."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = torch.randn(3, generator=torch.Generator().manual_seed(seed)) * 3

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, -1:] - 1) * self.weight.reshape(1, 3, 1, 1, 1)


def member(seed: int, name: str, **changes: Any) -> Any:
    made = run(**changes)
    made.model = Likes(seed).eval()
    made.run_dir = Path(name)
    return made


def mean_class(values: np.ndarray, seeds: list[int], normalized: list[np.ndarray] | None = None) -> np.ndarray:
    """What the mean of the softmax says, voxel by voxel."""
    parts = []
    for index, seed in enumerate(seeds):
        x = torch.from_numpy((normalized[index] if normalized else values).astype(np.float32))
        parts.append(((x - 1)[..., None] * Likes(seed).weight).softmax(-1))
    return np.array(LABEL_VALUES)[torch.stack(parts).mean(0).argmax(-1).numpy()]


def test_the_mean_of_probabilities_decides(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    values = voxels()
    write_scan(tmp_path / "in" / "a.nii.gz", values)
    runs = [member(seed, f"run_{seed}") for seed in (0, 6, 7)]
    (report,) = Predictor(runs).predict_folder(tmp_path / "in", tmp_path / "out")
    assert report.ok
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.nii.gz"), mean_class(values, [0, 6, 7]))
    assert (mean_class(values, [0, 6, 7]) != mean_class(values, [0])).any()
    marker = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert marker["run"] == "run_0"
    assert [other["run"] for other in marker["with"]] == ["run_6", "run_7"]
    with pytest.raises(UsageError, match="predictions of another model"):
        Predictor(runs[:2]).predict_folder(tmp_path / "in", tmp_path / "out")


def test_every_member_normalises_by_its_own_fold(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    values = voxels()
    write_scan(tmp_path / "in" / "a.nii.gz", values)
    schemes = [(0.3, 0.9), (0.8, 1.7), (0.5, 1.3)]
    runs = [
        member(seed, f"run_{seed}", normalization=(ChannelNormalization("ct", 0.0, 2.0, mean, std),))
        for seed, (mean, std) in enumerate(schemes)
    ]
    (report,) = Predictor(runs).predict_folder(tmp_path / "in", tmp_path / "out")
    assert report.ok
    normalized = [(values - mean) / std for mean, std in schemes]
    expected = mean_class(values, [0, 1, 2], normalized)
    np.testing.assert_array_equal(read(tmp_path / "out" / "a.nii.gz"), expected)


def test_members_together_are_sure_of_lesions(tmp_path: Path) -> None:
    """The highest mean probability within each lesion is in the table, of one model and of several."""
    (tmp_path / "in").mkdir()
    values = voxels()
    write_scan(tmp_path / "in" / "a.nii.gz", values)
    for seeds in ([0], [0, 6, 7]):
        runs = [member(seed, f"run_{seed}") for seed in seeds]
        runs[0].task.lesions = LesionRule(("cancer",))
        out = tmp_path / f"out_{len(seeds)}"
        Predictor(runs).predict_folder(tmp_path / "in", out)
        (row,) = csv.DictReader((out / "predictions.csv").read_text().splitlines())
        x = torch.from_numpy(values.astype(np.float32) - 1)[..., None]
        mean = torch.stack([(x * Likes(seed).weight).softmax(-1) for seed in seeds]).mean(0)
        components, count = ndimage.label(mean.argmax(-1) == 2, np.ones((3, 3, 3)))
        expected = ndimage.maximum(mean[..., 2].numpy(), components, range(1, count + 1))
        assert int(row["lesions/cancer"]) == count > 0
        found = [float(score) for score in row["lesion_scores/cancer"].split()]
        np.testing.assert_allclose(found, sorted(expected, reverse=True), rtol=0.06)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": (2.5, 1.5, 0.9)}, "their voxel size differ .2.5 x 1.5 x 0.9 and 2.5 x 1.5 x 0.8"),
        ({"patch_size": (8, 8, 16)}, "their patch differ .8 x 8 x 16 and 8 x 8 x 8"),
        ({"class_names": ("background", "liver", "cyst")}, "their classes differ"),
        ({"normalization": (ChannelNormalization("zscore", nonzero=True),)}, "inside the body"),
    ],
)
def test_runs_that_cannot_decide_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"b and a cannot decide together: .*{message}"):
        Predictor([member(0, "a"), member(1, "b", **changes)])


def test_members_of_a_cross_validation_are_told_apart(tmp_path: Path) -> None:
    scans = tmp_path / "in"
    scans.mkdir()
    write_scan(scans / "a.nii.gz", voxels())
    for name in ("first-crossval", "second-crossval"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "crossval.json").write_text("{}")
    Predictor(member(0, str(tmp_path / "first-crossval" / "fold_0"))).predict_folder(scans, tmp_path / "out")
    with pytest.raises(UsageError, match="run first-crossval/fold_0"):
        Predictor(member(0, str(tmp_path / "second-crossval" / "fold_0"))).predict_folder(scans, tmp_path / "out")


def test_memory_and_batches_make_no_other_model(tmp_path: Path) -> None:
    from medtrain.inference.sliding_window import SlidingWindow

    scans = tmp_path / "in"
    scans.mkdir()
    write_scan(scans / "a.nii.gz", voxels())
    Predictor(run()).predict_folder(scans, tmp_path / "out")
    changed = SlidingWindow(mirror=False, max_memory="1GiB", window_batch=3)
    (report,) = Predictor(run(inference=changed)).predict_folder(scans, tmp_path / "out")
    assert report.status == "skipped"
