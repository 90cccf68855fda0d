"""What the settings of the segmentation task are checked for, and what they change in its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    assert {"lesion_sensitivity", "lesion_fp/cancer", "froc"} <= task.metrics().keys()
    assert "lesion_f1/liver" not in task.metrics()
    assert task.monitor.name == "val/lesion_f1/cancer"
    assert task.metrics()["lesion_fp"].mode == "min"


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
