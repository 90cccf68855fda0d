from __future__ import annotations

import io
import logging
import math
from typing import Any

import pytest
from rich.console import Console

from medtrain.callbacks import metrics_table
from medtrain.callbacks.metrics_table import MetricsTable, make_rows, plain_table
from medtrain.metrics.spec import MetricSpec


def test_rows_are_mean_span_and_change() -> None:
    history = [
        {"step": 10, "epoch": 0, "val/dice": 0.5, "val/hd95_mm": math.nan},
        {"step": 20, "epoch": 1, "val/dice": 0.75, "val/hd95_mm": 12.0},
        {"step": 30, "epoch": 2, "val/dice": 0.625, "val/hd95_mm": 10.5},
    ]
    metrics = {"val/hd95_mm": 10.5, "val/dice": 0.625}
    assert make_rows(list(metrics), metrics, history, MetricSpec("val/dice", "max")) == [
        ("val/dice", "0.6250", "0.5000 .. 0.7500", "-0.1250"),
        ("val/hd95_mm", "10.5000", "10.5000 .. 12.0000", "-1.5000"),
    ]
    assert make_rows(["val/hd95_mm"], history[0], history[:1], MetricSpec("val/dice", "max")) == [
        ("val/hd95_mm", "-", "-", "-")
    ]
    assert make_rows(["val/hd95_mm"], history[1], history[:2], MetricSpec("val/dice", "max"))[0][3] == "-"


def test_plain_table_is_aligned() -> None:
    rows = [("val/dice", "0.6250", "0.5000 .. 0.7500", "+0.1250"), ("x", "10.5000", "-", "-")]
    assert plain_table(rows).split("\n") == [
        "  Metric       Mean              Span   Change",
        "  val/dice   0.6250  0.5000 .. 0.7500  +0.1250",
        "  x         10.5000                 -        -",
    ]


def test_in_a_pipe_the_table_is_one_log_record(view: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        view.evaluate(MetricsTable(), 10, improved=True, val_dice=0.5, **{"val_dice/liver": 0.6})
    (record,) = caplog.records
    lines = record.getMessage().split("\n")
    assert lines[0] == "evaluation at step 10, epoch 0: new best val/dice 0.5000"
    assert [line.split()[0] for line in lines[1:]] == ["Metric", "val/dice", "val/dice/liver"]
    assert record.screen is True  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ("none", ["val/dice", "val/iou"]),
        ("monitor", ["val/dice", "val/dice/liver", "val/iou"]),
        ("all", ["val/dice", "val/dice/liver", "val/iou", "val/iou/liver"]),
    ],
)
def test_which_classes_are_shown(
    view: Any, caplog: pytest.LogCaptureFixture, classes: Any, expected: list[str]
) -> None:
    with caplog.at_level(logging.INFO):
        metrics = {"val_iou": 0.4, "val_iou/liver": 0.5, "val_dice": 0.5, "val_dice/liver": 0.6}
        view.evaluate(MetricsTable(metrics=None, classes=classes), 10, **metrics)
    assert _names(caplog) == expected


@pytest.mark.parametrize(
    ("settings", "monitor", "expected"),
    [
        ({}, "val/dice", ["val/dice", "val/dice/liver", "val/nsd", "val/hd95_mm"]),
        ({}, "val/iou", ["val/iou", "val/iou/liver", "val/dice", "val/nsd", "val/hd95_mm"]),
        ({"classes": "none"}, "val/iou/liver", ["val/iou/liver", "val/dice", "val/nsd", "val/hd95_mm"]),
        (
            {"metrics": ("nsd",), "classes": "all"},
            "val/dice",
            ["val/dice", "val/dice/liver", "val/nsd", "val/nsd/liver"],
        ),
        ({"metrics": ()}, "val/dice", ["val/dice", "val/dice/liver"]),
        ({"metrics": None}, "val/dice", ["val/dice", "val/dice/liver", "val/nsd", "val/iou", "val/hd95_mm"]),
    ],
)
def test_which_metrics_are_shown(
    view: Any, caplog: pytest.LogCaptureFixture, settings: Any, monitor: str, expected: list[str]
) -> None:
    view.monitor = MetricSpec(monitor, "max")
    means = {"val_dice": 0.5, "val_nsd": 0.4, "val_iou": 0.3, "val_hd95_mm": 12.0}
    metrics = {key: value for mean, value in means.items() for key in (mean, f"{mean}/liver")}
    with caplog.at_level(logging.INFO):
        view.evaluate(MetricsTable(**settings), 10, **metrics)
    assert _names(caplog) == expected


def _names(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.split()[0] for line in caplog.records[0].getMessage().split("\n")[2:]]


def test_on_a_terminal_the_table_is_drawn_and_the_log_file_gets_plain_text(
    view: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, color_system="truecolor")
    monkeypatch.setattr(metrics_table, "console", lambda: terminal)
    callback = MetricsTable()
    with caplog.at_level(logging.INFO):
        view.evaluate(callback, 10, val_dice=0.5)
        view.evaluate(callback, 20, val_dice=0.75)
        view.evaluate(callback, 30, val_dice=0.5)
    text = screen.getvalue()
    assert "\x1b[1;32m+0.2500" in text  # green
    assert "\x1b[1;31m-0.2500" in text  # red
    assert "\x1b" not in caplog.text
    assert all(record.screen is False for record in caplog.records)  # type: ignore[attr-defined]
