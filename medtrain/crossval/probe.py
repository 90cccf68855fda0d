"""What a cross-validation must know before its first fold: runs in a process of its own, which imports torch."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtrain import registry
from medtrain.config.imports import import_modules
from medtrain.data.source import Fold
from medtrain.data.splits import save_splits
from medtrain.engine.build import build_task, check_training
from medtrain.engine.derive import Derivation, derive, with_plan
from medtrain.engine.distributed import Dist
from medtrain.engine.initial import check_initial
from medtrain.engine.opening import log_progress, open_data
from medtrain.engine.seen import describe_seen, seen_cases
from medtrain.errors import UsageError
from medtrain.registry import build, plain
from medtrain.run.log import setup_logging
from medtrain.sweep.trial import count_gpus


@dataclass(frozen=True)
class Facts:
    """What was found.

    Args:
        config: The configuration that all folds share, with the shared plan filled in.
        plan: The shared plan, as plain data.
        values: What was derived: key, value, reason.
        folds: The division, of a segmentation; None where it follows from the configuration alone.
        split_hashes: Of the division of each fold.
        dataset: Name of the data.
        gpus: How many GPUs there are; 0 where the folds train on something else.
        seen: By fold, that the weights it begins with were trained on its validation cases; empty where they were not.
    """

    config: dict[str, Any]
    plan: dict[str, Any]
    values: tuple[tuple[str, Any, str], ...]
    folds: list[Fold] | None
    split_hashes: tuple[str, ...]
    dataset: str
    gpus: int
    seen: dict[int, str]


def probe(config: Mapping[str, Any], imports: Sequence[str]) -> Facts:
    """Divide the cases, plan once for all folds, and prepare every case.

    The plan of a segmentation (voxel size, patch, batch, network) comes from the sizes of all cases, as nnU-Net's does:
    its networks must be alike to be averaged. What is fitted to intensities and labels is not shared: every fold
    takes it from its own training part. Images take the plan of the first fold.

    Args:
        config: A checked configuration.
        imports: Modules that register the user's components.

    Raises:
        MedtrainError: The data is missing or contradicts the settings.
    """
    setup_logging()
    import_modules(imports)
    check_initial(config)
    segments = "segmentation" in registry.get("data", config["data"]["name"]).tags
    if not segments and config["data"].get("splits") is not None:
        raise UsageError(
            "data.splits holds one division of the images, and a cross-validation needs one for each fold",
            hint="drop it: the folds are made of data.num_folds",
        )
    folds: list[Fold] | None = None
    if segments:
        folds = build("data", _with_fold(config, 0)["data"]).find().folds
        _refuse_overlap(folds)
        derivation = _derive_whole(config, folds)
    else:
        derivation = derive(_with_fold(config, 0), progress=log_progress("reading"))
    # what contradicts the data is said before a fold is trained
    task = build_task(derivation.config, derivation.plan, derivation.device, None)
    check_training(derivation.config, derivation.plan, task)
    shared = with_plan(config, derivation)
    count = config["data"]["num_folds"] if folds is None else len(folds)
    divided = [build("data", {**shared["data"], "fold": fold}).find() for fold in range(count)]
    seen = seen_cases(derivation.config, _prepare(derivation))
    return Facts(
        config=plain(shared),
        plan=derivation.plan.to_json(),
        values=tuple((value.key, plain(value.value), value.reason) for value in derivation.values),
        folds=folds,
        split_hashes=tuple(str(found.split_hash) for found in divided),
        dataset=derivation.found.dataset_name,
        gpus=count_gpus(config["trainer"]["device"]),
        seen={
            fold: describe_seen(known, len(found.split["val"]), seen)
            for fold, found in enumerate(divided)
            if (known := [case_id for case_id in found.split["val"] if case_id in seen])
        },
    )


def _with_fold(config: Mapping[str, Any], fold: int) -> dict[str, Any]:
    return {**config, "data": {**config["data"], "fold": fold}}


def _refuse_overlap(folds: Sequence[Fold]) -> None:
    """Say that a case would be judged, and counted, several times."""
    held_out: dict[str, list[int]] = {}
    for index, fold in enumerate(folds):
        for case_id in fold["val"]:
            held_out.setdefault(case_id, []).append(index)
    several = {case_id: places for case_id, places in held_out.items() if len(places) > 1}
    if several:
        case_id, places = next(iter(several.items()))
        count = f"{len(several)} {'case is' if len(several) == 1 else 'cases are'}"
        raise UsageError(
            f"{count} held out by several folds, such as {case_id} by the folds {', '.join(map(str, places))}: a "
            "cross-validation would count each of them several times",
            hint="let every case be in `val` of one fold of data.splits only; to repeat a hold-out, train each fold "
            "by itself: medtrain train data.fold=N",
        )


def _derive_whole(config: Mapping[str, Any], folds: Sequence[Fold]) -> Derivation:
    """Plan with the cases of all folds, and with none besides."""
    cases = sorted({case_id for fold in folds for part in ("train", "val") for case_id in fold[part]})
    whole = _with_fold(config, 0)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "splits.json"
        save_splits(path, [{"train": cases, "val": []}])
        whole["data"]["splits"] = str(path)
        return derive(whole, progress=log_progress("reading"))


def _prepare(derivation: Derivation) -> dict[str, Any]:
    """Prepare every case once, before several folds want them; what identifies the data."""
    dist = Dist.from_environment()
    with contextlib.closing(open_data(derivation.config, derivation.plan, dist, derivation=derivation)) as data:
        return data.describe()
