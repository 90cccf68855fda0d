"""Curves of the run as pictures."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from medtrain.callbacks.base import Callback, EngineView
from medtrain.callbacks.series import Series
from medtrain.loggers.base import PERF_PREFIX
from medtrain.registry import Range, register

if TYPE_CHECKING:
    from medtrain.callbacks.plots import Line


@register("callbacks", "curves")
class Curves(Callback):
    """Draw progress.png (training loss, monitored metric, learning rate) and curves/<metric>.png, one per metric.

    They are drawn at evaluations, as often as the time share allows, and at the end of the run.

    Args:
        time_share: Share of the training time that drawing may take.
    """

    def __init__(self, *, time_share: Annotated[float, Range(gt=0, le=1)] = 0.01) -> None:
        self._time_share = time_share
        self._series: dict[str, Series] = {}
        self._spent_s = 0.0

    def on_log(self, view: EngineView, scalars: Mapping[str, float]) -> None:
        """Take the training numbers down."""
        for key, value in scalars.items():
            if not key.startswith(PERF_PREFIX):
                self._series.setdefault(key, Series()).add(view.step, value)

    def on_evaluation_end(self, view: EngineView, metrics: Mapping[str, float], improved: bool) -> None:
        """Draw, if there is time for it."""
        if self._spent_s <= self._time_share * view.elapsed_s:
            started = time.monotonic()
            self._draw(view)
            self._spent_s += time.monotonic() - started

    def on_fit_end(self, view: EngineView, status: str) -> None:
        """Draw the final curves."""
        self._draw(view)

    def state_dict(self) -> dict[str, Any]:
        """The training curves; those of the evaluations are in the history."""
        return {key: series.state_dict() for key, series in self._series.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the curves of the checkpoint."""
        self._series = {key: Series() for key in state}
        for key, series in self._series.items():
            series.load_state_dict(state[key])

    def _draw(self, view: EngineView) -> None:
        from medtrain.callbacks.forecast import read_forecast
        from medtrain.callbacks.plots import Line, draw_lines, draw_progress, family_name

        lines = {key: Line(key, series.steps, series.values) for key, series in self._series.items()}
        families = [[line] for line in lines.values() if len(line.steps) > 1]
        evaluated = _evaluation_lines(view.history)
        class_names = part_names([line.name for line in evaluated], view.class_names)
        families += group_by_class(evaluated, class_names)
        if not families:
            return
        names = file_names([family_name(family, class_names) for family in families])
        folder = view.run_dir / "curves"
        folder.mkdir(exist_ok=True)
        for family, name in zip(families, names, strict=True):
            mode = view.monitor.mode if family[0].name == view.monitor.name else None
            draw_lines(folder / name, family, class_names=class_names, mode=mode)
        forecast = read_forecast(view.run_dir)
        newest = forecast is not None and bool(view.history) and forecast.step == view.history[-1]["step"]
        monitored = [family for family in families if family[0].name == view.monitor.name]
        draw_progress(
            view.run_dir / "progress.png",
            losses=[line for key, line in lines.items() if key == "train/loss"]
            + [line for line in evaluated if line.name == "val/loss"],
            metric=monitored[0] if monitored else [],
            mode=view.monitor.mode,
            lr=lines.get("train/lr"),
            forecast=forecast if newest else None,
            class_names=class_names,
            title=f"{view.run_dir.parent.name} / {view.run_dir.name}",
        )


def _evaluation_lines(history: Sequence[Mapping[str, float]]) -> list[Line]:
    from medtrain.callbacks.plots import Line

    keys = dict.fromkeys(key for entry in history for key in entry if key not in ("step", "epoch"))
    lines = []
    for key in keys:
        series = Series()
        for entry in history:
            if key in entry:
                series.add(entry["step"], entry[key])
        if series.steps:
            lines.append(Line(key, series.steps, series.values))
    return lines


def part_names(keys: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """The class names, and what else metrics are given for, such as zones: what stands behind a metric and a slash.

    Args:
        keys: Names of metrics.
        class_names: Names of the classes.
    """
    known = set(keys)
    found = [key.rpartition("/")[2] for key in keys if key.rpartition("/")[0] in known]
    return list(dict.fromkeys([*class_names, *found]))


def group_by_class(lines: Sequence[Line], class_names: Sequence[str]) -> list[list[Line]]:
    """Put the lines of the classes (`val/dice/liver`) behind that of their mean (`val/dice`): one picture for each."""
    families: dict[str, list[Line]] = {}
    for line in sorted(lines, key=lambda line: any(line.name.endswith(f"/{c}") for c in class_names)):
        owner = next((line.name.removesuffix(f"/{c}") for c in class_names if line.name.endswith(f"/{c}")), line.name)
        families.setdefault(owner, []).append(line)
    return list(families.values())


def file_names(keys: Sequence[str]) -> list[str]:
    """A PNG file name for each key; keys that differ only in signs a file name cannot hold are numbered."""
    names: list[str] = []
    taken: set[str] = set()
    for key in keys:
        stem = re.sub(r"[^\w.\-]+", "_", key)
        name, number = f"{stem}.png", 1
        while name.lower() in taken:  # some file systems do not tell the case of letters
            number += 1
            name = f"{stem}_{number}.png"
        taken.add(name.lower())
        names.append(name)
    return names
