"""What the settings of the segmentation task are checked for, and what they change in its metrics."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medtrain.errors import UsageError
from medtrain.inference.sliding_window import SlidingWindow
from medtrain.losses.dice import DiceCELoss
from medtrain.tasks.case_report import CaseReport
from medtrain.tasks.segmentation import Segmentation
from tests.inference.runs import CPU, plan


def _task(**settings: Any) -> Segmentation:
    return Segmentation(loss=DiceCELoss(num_classes=3), inference=SlidingWindow(), plan=plan(), device=CPU, **settings)


@pytest.mark.parametrize(
    ("settings", "words", "hint"),
    [
        ({"lesions": ("canser",)}, "task.lesions: canser is none of the classes or regions liver, cancer", "cancer"),
        ({"nsd_tolerance_mm": {"livr": 1.0}}, "task.nsd_tolerance_mm: livr is none of", "liver"),
        ({"nsd_tolerance_mm": {"liver": -1.0}}, "task.nsd_tolerance_mm.liver=-1.0: it must be >= 0", None),
    ],
)
def test_names_and_tolerances_are_checked(settings: dict[str, Any], words: str, hint: str | None) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        _task(**settings)
    assert caught.value.hint == (f"did you mean {hint}?" if hint else None)


def test_lesions_bring_metrics_that_can_be_monitored() -> None:
    assert not any(key.startswith(("lesion", "froc")) for key in _task().metrics())
    task = _task(lesions=("cancer",), monitor="lesion_f1/cancer")
    assert {"lesion_sensitivity", "lesion_fp/cancer"} <= task.metrics().keys()
    assert "lesion_f1/liver" not in task.metrics()
    assert task.monitor.name == "val/lesion_f1/cancer"
    assert task.metrics()["lesion_fp"].mode == "min"


@pytest.mark.parametrize("monitor", ["dice", "froc", "froc/cancer"])
def test_froc_is_for_final_evaluations_unless_it_is_monitored(monitor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its candidates at lower thresholds take a pass over every scan for each."""
    task = _task(lesions=("cancer",), monitor=monitor)
    assert ({"froc", "froc/cancer"} <= task.metrics().keys()) == (monitor != "dice")
    label = np.zeros((6, 6, 6), dtype=np.uint8)
    label[2:4, 2:4, 2:4] = 2

    def predicted(*_: Any, maps: Any, **__: Any) -> np.ndarray:
        if maps is not None:
            maps.maps = {"cancer": np.where(label == 2, 200, 0).astype(np.uint8)}
        return label

    monkeypatch.setattr(task, "predict_label", predicted)
    monkeypatch.setattr(task, "_keep_if_worst", lambda *_: None)
    geometry = SimpleNamespace(canonical_spacing=(1.0, 1.0, 1.0))
    item = {"case_id": "a", "image": None, "geometry": geometry, "source_label": label}
    for final in (False, True):
        found = task.summarize(task.evaluation_step(torch.nn.Identity(), item, final=final))
        assert ("froc" in found) == (final or monitor != "dice")
        assert found["lesion_f1"] == 1


@pytest.mark.parametrize(
    ("keep", "speck", "ends"),
    [
        ("liver", 1, False),  # another organ
        ("cancer", 2, True),  # the lesions themselves
        ("foreground", 1, True),  # what they lie in
    ],
)
def test_the_curve_ends_where_lesions_were_removed(
    keep: str, speck: int, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = np.zeros((10, 20, 20), dtype=np.uint8)  # [D, H, W]
    label[2:8, 2:12, 2:12] = 1
    label[4:6, 4:6, 4:6] = 2
    label[0, 18, 18] = speck
    certainty = np.where(label == 2, 200, 0).astype(np.uint8)
    certainty[4:6, 9:11, 9:11] = 30  # of a lesion that is not predicted
    certainty[0, 18, 18] = 1
    task = _task(lesions=("cancer",))
    task.inference = SlidingWindow(keep_largest=(keep,))
    monkeypatch.setattr(SlidingWindow, "predict_label", lambda *_, **__: label)
    maps = task.lesion_maps()
    assert maps is not None
    maps.maps = {"cancer": certainty.copy()}
    final = task.predict_label([], [], None, final=True, maps=maps)  # type: ignore[arg-type]
    assert final[0, 18, 18] == 0
    assert (maps.maps["cancer"][4, 9, 9] == 0) == ends
    assert maps.maps["cancer"][4, 4, 4] == 200


def test_a_table_of_subgroups_is_read_for_final_evaluations(tmp_path: Path) -> None:
    """A run whose table is gone can still train and predict; what needs it says so before it judges anything."""
    report = CaseReport(metadata=str(tmp_path / "gone.csv"), subgroups=("site",))
    task = _task(report=report)

    def judge(*, final: bool) -> Any:
        return task.evaluation_step(torch.nn.Identity(), {}, final=final)

    for judged in (lambda: judge(final=True), lambda: task.check_training({}, None)):
        with pytest.raises(UsageError, match=r"task\.report\.metadata: there is no file .*gone\.csv") as caught:
            judged()
        assert caught.value.hint is not None
        assert "task.report.metadata=FILE" in caught.value.hint
    task.begin_evaluation()
    with pytest.raises(KeyError, match="image"):  # it goes on to the case
        judge(final=False)
