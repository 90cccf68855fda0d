"""The metrics of one case, their summary over cases, and the tables written of both."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medtrain.metrics.overlap import OVERLAP_METRICS, as_label_map, confusion_matrix, overlap_scores
from medtrain.metrics.spec import MetricSpec
from medtrain.metrics.surface import SURFACE_METRICS, bounding_box, surface_metrics
from medtrain.run.atomic import atomic_write, atomic_write_json

if TYPE_CHECKING:
    from rich.table import Table

_SPECS = (
    MetricSpec("dice", "max"),
    MetricSpec("nsd", "max"),
    MetricSpec("hd95_mm", "min", "mm"),
    MetricSpec("asd_mm", "min", "mm"),
    MetricSpec("iou", "max"),
    MetricSpec("precision", "max"),
    MetricSpec("recall", "max"),
    MetricSpec("volume_error_ml", "min", "mL"),
)


def metric_specs(class_names: Sequence[str]) -> dict[str, MetricSpec]:
    """The metrics of `summarize` by key, the default monitor first: `dice`, ..., `dice/liver`, ...

    Args:
        class_names: Name of every class index, background first.
    """
    specs = {spec.name: spec for spec in _SPECS}
    for spec in _SPECS:
        for name in class_names[1:]:
            key = f"{spec.name}/{name}"
            specs[key] = MetricSpec(key, spec.mode, spec.unit)
    return specs


def evaluate_case(
    prediction: np.ndarray | torch.Tensor,
    label: np.ndarray | torch.Tensor,
    spacing: Sequence[float],
    class_names: Sequence[str],
    *,
    surface: bool = True,
    nsd_tolerance_mm: float = 1.0,
    ignore_index: int | None = None,
) -> dict[str, float]:
    """Compare a predicted label map with the true one, per foreground class.

    Keys are `dice/<class>`, `iou/`, `precision/`, `recall/`, `volume_error_ml/` (absolute difference of the volumes)
    and, with `surface`, `hd95_mm/`, `nsd/`, `asd_mm/`.

    Empty classes: a class in neither map is NaN in all metrics but the volume error, which is 0. A class in only one
    map scores 0 in dice, iou, precision, recall and nsd; its distances hd95_mm and asd_mm do not exist and are NaN.

    Args:
        prediction: Class indices [*S].
        label: Class indices [*S]; may hold `ignore_index`.
        spacing: Voxel size in mm per axis of S.
        class_names: Name of every class index, background first.
        surface: Whether to compute the surface metrics.
        nsd_tolerance_mm: Surface distance that still counts as right, >= 0.
        ignore_index: Voxels with this label are left out; for surfaces they are background in both maps.
    """
    predicted, true = as_label_map(prediction), as_label_map(label)
    assert predicted.shape == true.shape, f"prediction {predicted.shape}, label {true.shape}"
    confusion = confusion_matrix(predicted, true, len(class_names), ignore_index=ignore_index)
    scores = overlap_scores(confusion)
    millilitres = math.prod(spacing) / 1000.0
    volume_error = np.abs(confusion.sum(axis=0) - confusion.sum(axis=1)) * millilitres
    row: dict[str, float] = {}
    for index, name in enumerate(class_names[1:], start=1):
        row |= {f"{metric}/{name}": float(scores[metric][index]) for metric in OVERLAP_METRICS}
        row[f"volume_error_ml/{name}"] = float(volume_error[index])
    if surface:
        if ignore_index is not None and (ignored := true == ignore_index).any():
            predicted, true = np.where(ignored, 0, predicted), np.where(ignored, 0, true)
        # Outside this box every class is empty, so nothing of any surface is lost.
        box = bounding_box((predicted != 0) | (true != 0)) or ()
        predicted, true = predicted[box], true[box]
        for index, name in enumerate(class_names[1:], start=1):
            values = surface_metrics(predicted == index, true == index, spacing, nsd_tolerance_mm=nsd_tolerance_mm)
            row |= {f"{metric}/{name}": values[metric] for metric in SURFACE_METRICS}
    return row


def summarize(records: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> dict[str, float]:
    """Average over cases per class, then over the foreground classes.

    `dice/liver` is the mean over the cases in which it is defined, `dice` the mean of the classes' means (nnU-Net's
    foreground mean); NaN where it is defined in no case.

    Args:
        records: Rows of `evaluate_case`; other columns are passed over.
        class_names: Name of every class index, background first.
    """
    summary: dict[str, float] = {}
    for spec in _SPECS:
        keys = [f"{spec.name}/{name}" for name in class_names[1:]]
        if not any(key in record for record in records for key in keys):
            continue
        means = {key: _statistics(_column(records, key))["mean"] for key in keys}
        summary[spec.name] = _statistics(np.array(list(means.values())))["mean"]
        summary |= means
    return summary


def worst_cases(records: Sequence[Mapping[str, Any]], count: int = 5) -> list[tuple[str, float]]:
    """The cases with the lowest mean Dice over their classes, the worst first, with that mean.

    Args:
        records: `case_id` and metrics of every case.
        count: How many.
    """
    scores = []
    for record in records:
        values = [value for key, value in record.items() if key.startswith("dice/") and not math.isnan(value)]
        if values:
            scores.append((str(record["case_id"]), float(np.mean(values))))
    return sorted(scores, key=lambda item: (item[1], item[0]))[:count]


def cases_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """A table with one row per case; undefined values are `nan`, numbers are exact.

    Args:
        records: `case_id` and metrics of every case.
    """
    columns = list(dict.fromkeys(key for record in records for key in record))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for record in records:
        # repr() round-trips; numpy's own scalars would be written with their type
        values = [record.get(column, "") for column in columns]
        writer.writerow([repr(float(value)) if isinstance(value, float) else value for value in values])
    return text.getvalue()


def summary_json(records: Sequence[Mapping[str, Any]], summary: Mapping[str, float]) -> dict[str, Any]:
    """Statistics of an evaluation as plain data.

    Under `classes`, every metric of every class has mean, std (of the sample), median, min and max over the cases in
    which it is defined, their number n and the number n_undefined of the others. Under `mean` are the means over the
    foreground classes.

    Args:
        records: `case_id` and metrics of every case.
        summary: The result of `summarize`.
    """
    classes: dict[str, dict[str, Any]] = {}
    for key in summary:
        metric, separator, name = key.partition("/")
        if separator:
            classes.setdefault(name, {})[metric] = _statistics(_column(records, key))
    means = {key: value for key, value in summary.items() if "/" not in key}
    return {"num_cases": len(records), "mean": means, "classes": classes}


def write_evaluation(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    summary: Mapping[str, float],
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `cases.csv` and `summary.json` into an existing folder, each in one step.

    Args:
        folder: Where to write.
        records: `case_id` and metrics of every case.
        summary: The result of `summarize`.
        extra: What else to keep in the summary: the checkpoint, the part of the data.
    """
    atomic_write(folder / "cases.csv", cases_csv(records))
    atomic_write_json(folder / "summary.json", {**(extra or {}), **summary_json(records, summary)})


def summary_table(records: Sequence[Mapping[str, Any]], summary: Mapping[str, float], *, title: str) -> Table:
    """A table for the console: one row per class and one for their mean, one column per metric.

    Args:
        records: `case_id` and metrics of every case.
        summary: The result of `summarize`.
        title: Printed above.
    """
    from rich.table import Table
    from rich.text import Text

    specs = [spec for spec in _SPECS if spec.name in summary]
    names = list(dict.fromkeys(key.partition("/")[2] for key in summary if "/" in key))
    # Eight metrics fit 80 columns: no lines between them, units below the names, long class names folded.
    table = Table(title=Text(title, style="bold"), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("class", overflow="fold")
    for spec in specs:
        words = spec.name.removesuffix(f"_{spec.unit.lower()}").split("_")
        table.add_column("\n".join([*words, spec.unit]).strip(), justify="right", no_wrap=True)
    for name in names:
        table.add_row(Text(name), *(_shown(summary[f"{spec.name}/{name}"], spec) for spec in specs))
    table.add_row(Text("mean"), *(_shown(summary[spec.name], spec) for spec in specs), style="bold")
    undefined = [
        f"{key}: {count}" for key in summary if "/" in key and (count := int(np.isnan(_column(records, key)).sum()))
    ]
    if undefined:
        table.caption = Text(f"cases without a value: {', '.join(undefined)}")
        table.caption_justify = "left"
    return table


def _column(records: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([record.get(key, math.nan) for record in records], dtype=np.float64)


def _statistics(values: np.ndarray) -> dict[str, Any]:
    """Mean, std, median, min, max of the defined values; NaN where there are too few of them."""
    defined = values[~np.isnan(values)]
    functions: dict[str, Callable[[np.ndarray], Any]] = {
        "mean": np.mean,
        "median": np.median,
        "min": np.min,
        "max": np.max,
    }
    found = {name: float(function(defined)) if defined.size else math.nan for name, function in functions.items()}
    found["std"] = float(np.std(defined, ddof=1)) if defined.size > 1 else math.nan
    return {**found, "n": int(defined.size), "n_undefined": int(values.size - defined.size)}


def _shown(value: float, spec: MetricSpec) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}" if spec.unit else f"{value:.4f}"
