"""Several runs that decide together: what they must share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medtrain.errors import UsageError

if TYPE_CHECKING:
    from medtrain.engine.restore import LoadedRun

_SHARED = {
    "spatial_dims": "dimensions",
    "spacing": "voxel size",
    "patch_size": "patch",
    "channel_names": "channels",
    "class_names": "classes",
    "label_values": "label values",
    "regions": "regions",
    "cascade": "previous stage",
}
"""Fields of the plan that the members of an ensemble have in common; how they normalise may differ."""


def check_together(runs: Sequence[LoadedRun]) -> None:
    """See that runs can decide together: same grid, same windows, same outputs.

    Raises:
        UsageError: They cannot; says what differs.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.plan.family != "segmentation" or first.plan.family != "segmentation":
            raise UsageError("several runs decide together only where they segment volumes", hint="name one run")
        for field, words in _SHARED.items():
            own, others = getattr(run.plan, field), getattr(first.plan, field)
            if own != others:
                raise UsageError(
                    f"{run.run_dir.name} and {first.run_dir.name} cannot decide together: their {words} differ "
                    f"({_short(own)} and {_short(others)})",
                    hint="train them with one plan, as medtrain crossval does",
                )
        if _needs_body(run) != _needs_body(first):
            raise UsageError(
                f"{run.run_dir.name} and {first.run_dir.name} cannot decide together: only one of them normalises "
                "by the voxels inside the body",
                hint="train them with one plan, as medtrain crossval does",
            )


def share_normalization(runs: Sequence[LoadedRun]) -> bool:
    """Whether one normalised image serves all members."""
    return all(run.plan.normalization == runs[0].plan.normalization for run in runs)


def _needs_body(run: LoadedRun) -> bool:
    return any(channel.nonzero for channel in run.plan.normalization)


def _short(value: Any) -> str:
    text = " x ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) if _plain(value) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(v, int | float | str) for v in value)
