"""Where a run goes and what it is called."""

from __future__ import annotations

from dataclasses import dataclass

from medtrain.registry import register


@register("run", "default")
@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of the run folder.

    Args:
        dir: The run's folder, which must not hold a run yet; null makes `<root>/<experiment>/<YYYYMMDD-HH-xxxx>`.
        root: Where experiments are kept.
        experiment: Name of the experiment, a folder below the root; null is `<data>_<model>`.
        note: A remark kept with the run.
        tags: Labels kept with the run and sent to the trackers.
    """

    dir: str | None = None
    root: str = "outputs"
    experiment: str | None = None
    note: str = ""
    tags: tuple[str, ...] = ()
