"""The table of the attention: which instance or view decided."""

from __future__ import annotations

from typing import Any

from medtrain.data.images.plan import ImagePlan, TargetPlan
from medtrain.losses.classes import ClassCrossEntropy
from medtrain.tasks.report import Report
from tests.tasks.stubs import made

TARGET = TargetPlan("lesion", ("benign", "malignant"), (1, 1))


def rows_of(record: dict[str, Any], **plan: Any) -> list[dict[str, Any]]:
    task = made(
        "classification",
        loss=ClassCrossEntropy([TARGET]),
        plan=ImagePlan(2, (4, 4), 1, 2, (0.5,), (0.5,), targets=(TARGET,), **plan),
        report=Report(resamples=0),
    )
    return task.final_tables([{"case_id": "p1", "group": "p1", "label": 0, "predicted": 0, **record}])["attention"]


def test_views_are_named() -> None:
    rows = rows_of({"attention": "0.25 0.75 0"}, view_names=("plain", "arterial", "portal"))
    assert rows == [
        {"case_id": "p1", "instance": 0, "view": "plain", "attention": 0.25},
        {"case_id": "p1", "instance": 1, "view": "arterial", "attention": 0.75},
        {"case_id": "p1", "instance": 2, "view": "portal", "attention": 0.0},
    ]


def test_instances_have_their_place() -> None:
    rows = rows_of({"attention": "1"}, max_instances=3)
    assert rows == [{"case_id": "p1", "instance": 0, "attention": 1.0}]
