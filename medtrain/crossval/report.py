"""report.md of a cross-validation."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medtrain.crossval.folder import CrossvalFolder, CrossvalRecord
from medtrain.run.atomic import atomic_write


def write_crossval_report(folder: CrossvalFolder, record: CrossvalRecord) -> Path:
    """Write report.md from what crossval.json says.

    Args:
        folder: Of the cross-validation.
        record: With its metrics.

    Returns:
        The file.
    """
    sections = [_head(folder, record), _metrics(record), _worst(record), _folds(record)]
    sections += [_postprocessing(record), _next(folder, record)]
    path = folder.path / "report.md"
    atomic_write(path, "\n\n".join(section for section in sections if section) + "\n")
    return path


def _head(folder: CrossvalFolder, record: CrossvalRecord) -> str:
    judged = "each by the model that was not trained on it"
    if record.seen:
        judged = "**but not all by a model that was not trained on them**"
    lines = [
        f"# {folder.path.parent.name} / {folder.path.name}",
        "",
        f"Cross-validation: {len(record.members)} of {record.num_folds} folds are trained, {record.num_cases} cases "
        f"are judged, {judged}. All cases: `cases.csv`.",
    ]
    lines += [f"\n**{name}:** {told}." for name, told in record.seen.items()]
    lines += [f"\n**{name} failed:** {why}" for name, why in record.failed.items()]
    return "\n".join(lines)


def _metrics(record: CrossvalRecord) -> str:
    folds, cases = record.metrics.get("folds", {}), record.metrics.get("cases", {})
    intervals, confidence = record.metrics.get("intervals", {}), record.metrics.get("confidence")
    header = ["Metric", "Folds: mean", "std"]
    header += ["All cases"] if cases else []
    header += [f"{100 * confidence:.0f} % interval (patients drawn again)"] if confidence else []
    rows = []
    for name, values in folds.items():
        row = [name, _number(values["mean"]), _number(values["std"])]
        row += [_number(cases.get(name))] if cases else []
        row += [" .. ".join(map(_number, intervals[name])) if name in intervals else "-"] if confidence else []
        rows.append(row)
    return "## Metrics\n\n" + _table(header, rows) if rows else ""


def _worst(record: CrossvalRecord) -> str:
    worst = record.metrics.get("worst", ())
    rows = [[found["case_id"], _number(found["score"]), found["fold"]] for found in worst]
    told = "Look at one: `medtrain evaluate` its fold's run `--case` its id."
    return f"## Worst cases\n\n{told}\n\n" + _table(["Case", "Mean Dice", "Judged by"], rows) if rows else ""


def _folds(record: CrossvalRecord) -> str:
    folds: Mapping[str, Any] = record.metrics.get("folds", {})
    names = list(folds)[:1] + [name for name in list(folds)[1:] if "/" in name and name.startswith(_main(folds))]
    rows = [
        [f"[{member}]({member}/report.md)", *(_number(folds[name]["values"][index]) for name in names)]
        for index, member in enumerate(record.members)
    ]
    return "## Folds\n\n" + _table(["Run", *names], rows) if names else ""


def _main(folds: Mapping[str, Any]) -> str:
    return f"{next(iter(folds)).partition('/')[0]}/"


def _postprocessing(record: CrossvalRecord) -> str:
    chosen = record.chosen
    if not chosen.get("num_cases"):
        return ""
    kept = record.postprocess["keep_largest"]
    said = (
        f"Only the largest component is kept of: **{', '.join(kept)}**. `medtrain predict` does so."
        if kept
        else "None: keeping only the largest component helps nothing without hurting something else."
    )
    before, after = chosen["dice_before"], chosen["dice_after"]
    rows = [[name, _number(before[name]), _number(after[name])] for name in before]
    tried = [
        [f"largest component of {trial['keep_largest']}", _number(trial["before"]["mean"]),
         _number(trial["after"]["mean"]), trial["verdict"]]
        for trial in chosen["tried"]
    ]  # fmt: skip
    return "\n\n".join(
        [
            f"## Post-processing, chosen on {chosen['num_cases']} held-out cases",
            said,
            _table(["Dice", "Before", "After"], rows),
            _table(["Tried", "Mean Dice before", "After", "Verdict"], tried),
        ]
    )


def _next(folder: CrossvalFolder, record: CrossvalRecord) -> str:
    relative = os.path.relpath(folder.path)
    path = str(folder.path) if relative.startswith("..") else relative
    member = record.members[0] if record.members else "fold_0"
    segments = folder.splits.is_file()
    predict = f"{path} SCANS OUT    # all models together" if segments else f"{path}/{member} IN OUT.csv"
    return f"""## What to do with it

```sh
medtrain predict  {predict}
medtrain resume   {path}              # folds that are not done
medtrain evaluate {path}              # put the folds together again
medtrain export   {path}/{member} --format onnx
```"""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_row(header), "|" + "---|" * len(header), *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
