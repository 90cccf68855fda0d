"""Which keys a sweep may vary: what all trials share, and what changes nothing that is learned."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from medtrain.registry import SWEEP_GROUPS

_SPLIT = "all trials share the split"
_DATA = "all trials learn from the same data"
_JUDGED = "all trials are judged alike, or their values could not be compared"
_INERT = "has no effect on what is learned"

_TABLE = (
    *("path", "separator", "encoding", "decimal", "images", "image_folder", "image_pattern", "image_suffix"),
    *("sample_id", "bag", "view", "views", "missing_images", "duplicates", "numeric", "categorical"),
    *("annotation", "annotation_box", "annotation_point", "metadata"),
    *("targets", "target_kind", "target_classes", "target_names", "missing_class", "class_names", "paired_targets"),
)
"""Which columns of a table are what."""

_GENERATED = (
    *("num_samples", "phantom_size", "volume_shape", "labels", "annotated", "unlabelled", "unknown", "missing"),
    *("min_bag", "max_bag", "follow_up", "age_effect", "image_effect"),
)
"""What generated data are like."""

SHARED: Mapping[str, tuple[str, str | None]] = {
    "seed": (
        "all trials share the seed, or luck would win",
        "`sweep.rerun_best=3` trains the best ones again over several seeds; a grid of comma lists may have seeds",
    ),
    "data.fold": (_SPLIT, "`sweep.folds=[0,1,2]` trains every trial on these folds and takes the mean"),
    "data.num_folds": (_SPLIT, None),
    "data.splits": (_SPLIT, None),
    **{f"data.{key}": (_SPLIT, None) for key in ("group_pattern", "group", "part", "shares", "split_seed")},
    "data": (_DATA, "begin a sweep for each data set"),
    "data.root": (_DATA, "begin a sweep for each data set"),
    "data.task": (_DATA, "begin a sweep for each data set"),
    "data.num_cases": (_DATA, None),
    "data.num_test_cases": (_DATA, None),
    "data.phantom_seed": (_DATA, None),
    "data.true_scale": (_DATA, None),
    **{f"data.{key}": (_DATA, None) for key in _TABLE},
    **{f"data.{key}": (_DATA, None) for key in _GENERATED},
    "data.merge_labels": (_JUDGED, "begin a sweep for each set of classes"),
    "data.regions": (_JUDGED, "begin a sweep for each set of regions"),
    "data.annotated": (_DATA, None),
    "data.cascade_from": (_DATA, "begin a sweep for each first stage"),
    "task": (_JUDGED, None),
    "task.*": (_JUDGED, None),
    "trainer.eval_every": (_JUDGED, None),
    "trainer.eval_cases": (_JUDGED, None),
    "trainer.final_evaluation": (_JUDGED, None),
    "trainer.device": ("all trials train on the same kind of device", "set it for all: `trainer.device=...`"),
}
"""Keys that are the same in all trials: why, and what to do instead."""

GRID_MAY = ("seed", "data.fold")
"""Shared keys that a grid of comma lists may have all the same: there is nothing that could be fooled."""

_NO_EFFECT = (
    "run",
    "run.*",
    "logger",
    "logger.*",
    "callbacks",
    "callbacks.*",
    "data.store",
    "data.cache",
    "trainer.checkpoint_every",
    "trainer.init_min_match",
    "trainer.keep_every",
    "trainer.keep_last",
    "trainer.log_every",
    "trainer.max_nonfinite",
    "trainer.sanity_check",
    "trainer.save_predictions",
)
_EFFECT = ("callbacks.early_stopping.*",)
_SPEED = (
    "data.num_workers",
    "inference.max_memory",
    "inference.window_batch",
    "trainer.channels_last",
    "trainer.compile",
    "trainer.deterministic",
    "trainer.num_threads",
)
_SPEEDS = ("train_s", "latency_ms")


def why_not(
    key: str, *, is_grid: bool, objectives: Collection[str], final_evaluation: bool
) -> tuple[str, str | None] | None:
    """Why a key cannot be searched, and what to do instead; None when it can.

    Args:
        key: Dotted config key, or a group.
        is_grid: Whether the sweep is a grid of comma lists.
        objectives: What the sweep optimizes.
        final_evaluation: Whether trials end with one.
    """
    head = key.split(".", 1)[0]
    if head in SWEEP_GROUPS:
        return "a sweep does not search its own settings", f"give one value: `{key}=...`"
    if head == "debug":
        return "a debug preset is not searched", "choose one for all trials: `debug=...`"
    shared = next((reason for pattern, reason in SHARED.items() if fnmatchcase(key, pattern)), None)
    if shared is not None:
        return None if is_grid and key in GRID_MAY else shared
    if _matches(key, _EFFECT):
        return None
    if _matches(key, _NO_EFFECT):
        return _INERT, f"set it for all trials: `{key}=...`"
    if key == "inference.mirror" and not final_evaluation:
        return "only the final evaluation uses it, which trials leave out", "let `inference.mirror_in_training` vary"
    if _matches(key, _SPEED) and not set(objectives) & set(_SPEEDS):
        hint = f"set it for all trials, or add {' or '.join(_SPEEDS)} to `sweep.objectives`"
        return f"{_INERT}, only on the speed", hint
    return None


def _matches(key: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
