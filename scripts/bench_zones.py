"""Grades of lung zones on the same held-out images: medtrain against a majority class and a logistic regression.

The set is small, so every image is held out once: patients are divided into folds, and the images of a fold are judged
by what was made of the other folds. The baselines learn from all images of these; medtrain, run by its command line
as a user would, keeps 15/85 of them to choose its checkpoint. `--folds 1` judges the test part of one 70/15/15 split.

    majority    The commonest grade of each zone.
    logistic    Logistic regression of each zone on grey thumbnails of 32 x 32 pixels (scikit-learn).
    timm        medtrain train model=timm model.arch=resnet18 data=brixia task=zones
    zones       medtrain train model=zones data=brixia task=zones: heads that look at their own zone

Prints the mean absolute error per zone and of the average score, macro F1 (mean over zones) and the correlation of the
global score with 95 % intervals by patient, and the same of the differences to both baselines.

    python scripts/bench_zones.py [--data DIR/brixia_cxr] [--folds 5] [--steps N | --minutes M] [--models timm,zones]
                                  [--seed 0] [--out DIR] [OVERRIDES ...]

Exit code 1 if a model is not better than both baselines in each of the four figures.
"""

from __future__ import annotations

import argparse
import csv
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medtrain.config.compose import load_config
from medtrain.data.images.found import FoundImages
from medtrain.data.sample import Sample
from medtrain.data.stratified import make_parts, make_stratified_folds, members_of, save_parts
from medtrain.metrics.bootstrap import Interval, bootstrap_intervals
from medtrain.metrics.zones import zone_metrics
from medtrain.registry import build
from medtrain.tasks.zones import find_unknown

BASELINES = ("majority", "logistic")
MODELS = {"timm": ("model=timm", "model.arch=resnet18"), "zones": ("model=zones", "model.arch=resnet18")}
FIGURES = {"mae": "MAE per zone", "score_mae": "MAE of average", "f1_macro": "macro F1", "score_pearson": "correlation"}
LOWER = ("mae", "score_mae")
THUMBNAIL = 32


@dataclass(frozen=True)
class Said:
    """What a system says of images.

    Args:
        classes: Class indices [N, Z].
        grades: Grades [N, Z] for the error and the score: expected ones where the task takes these.
    """

    classes: np.ndarray
    grades: np.ndarray


def read_thumbnail(sample: Sample) -> np.ndarray:
    (path,) = sample.images
    assert isinstance(path, Path), f"{path} is no file"
    with Image.open(path) as picture:
        grey = picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    return np.asarray(grey, dtype=np.float64).ravel() / 255


def targets_of(samples: Sequence[Sample]) -> np.ndarray:
    """Class indices [N, Z]; NaN where unlabelled."""
    return np.array([[math.nan if value is None else value for value in sample.targets] for sample in samples])


def judge_baselines(train: Sequence[Sample], test: Sequence[Sample], penalty: float) -> dict[str, Said]:
    labels = targets_of(train)
    images, new = (np.stack([read_thumbnail(sample) for sample in part]) for part in (train, test))
    found: dict[str, list[np.ndarray]] = {name: [] for name in BASELINES}
    for column in labels.T:
        known = ~np.isnan(column)
        true = column[known].astype(np.int64)
        found["majority"].append(np.full(len(test), np.bincount(true).argmax()))
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=5000))
        found["logistic"].append(model.fit(images[known], true).predict(new))
    return {name: Said(np.stack(columns, 1), np.stack(columns, 1).astype(float)) for name, columns in found.items()}


def medtrain(*words: str) -> None:
    command = [sys.executable, "-m", "medtrain", *words]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    if process.returncode != 0:
        sys.exit(f"medtrain {' '.join(words)} ended with {process.returncode}:\n{process.stderr[-3000:]}")


def train_and_judge(
    run: Path, words: Sequence[str], test: Sequence[Sample], zones: Sequence[str], score: str
) -> tuple[Said, float]:
    """Run medtrain's own commands; what it says of the test part, and the minutes that training took."""
    started = time.monotonic()
    medtrain("train", *words, f"run.dir={run}")
    minutes = (time.monotonic() - started) / 60
    medtrain("evaluate", str(run), "--part", "test")
    (table,) = run.glob("evaluation/test_step_*/cases.csv")
    with table.open(newline="") as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    kinds = {"classes": "predicted", "grades": "predicted" if score == "classes" else "grade"}
    values = {
        kind: np.array([[float(rows[sample.sample_id][f"{key}/{zone}"]) for zone in zones] for sample in test])
        for kind, key in kinds.items()
    }
    return Said(**values), minutes


def make_folds(found: FoundImages, folds: int, seed: int) -> list[dict[str, list[str]]]:
    """Parts of every fold; none shares a patient with another."""
    members = members_of(found.sample_set)
    if folds == 1:
        return [make_parts(members, seed=seed)]
    parts = []
    for fold in make_stratified_folds(members, folds, seed=seed):
        kept = set(fold["train"])
        rest = [member for member in members if member.sample_id in kept]
        parts.append({**make_parts(rest, {"train": 70 / 85, "val": 15 / 85}, seed=seed), "test": fold["val"]})
    return parts


def figures(
    said: Mapping[str, Said], labels: np.ndarray, classes: Sequence[str], zones: Sequence[str], unknown: int | None
) -> dict[str, float]:
    """Figures of every system as `system/figure`, and differences as `system - baseline/figure`."""
    found: dict[str, dict[str, float]] = {
        name: zone_metrics(given.classes, labels, classes, zones, unknown_index=unknown, grades=given.grades)
        for name, given in said.items()
    }
    values = {f"{name}/{key}": value for name, metrics in found.items() for key, value in metrics.items()}
    for name in (name for name in said if name not in BASELINES):
        for other in BASELINES:
            values |= {f"{name} - {other}/{key}": found[name][key] - found[other][key] for key in FIGURES}
    return values


def print_table(intervals: Mapping[str, Interval], names: Sequence[str]) -> None:
    width = max(len(name) for name in names)
    print(" " * width, *(f"{title:>25}" for title in FIGURES.values()))
    for name in names:
        cells = []
        for key in FIGURES:
            found = intervals[f"{name}/{key}"]
            ends = f"[{found.low:.3f}, {found.high:.3f}]"
            cells.append(f"{found.value:.3f} {ends:>18}" if not math.isnan(found.value) else "-")
        print(f"{name:{width}}", *(f"{cell:>25}" for cell in cells))


def report(
    said: Mapping[str, Said], test: Sequence[Sample], classes: Sequence[str], zones: Sequence[str], unknown: int | None
) -> bool:
    """Print everything; whether each model is better than both baselines in every figure."""
    labels = targets_of(test)
    patients = [sample.group for sample in test]
    intervals = bootstrap_intervals(
        lambda chosen: figures(
            {name: Said(one.classes[chosen], one.grades[chosen]) for name, one in said.items()},
            labels[chosen],
            classes,
            zones,
            unknown,
        ),
        patients,
        generator=np.random.default_rng(0),
    )
    models = [name for name in said if name not in BASELINES]
    print(f"\n{len(test)} held-out images of {len(set(patients))} patients, 95 % intervals by patient")
    print_table(intervals, list(said))
    print("\nmean absolute error of each zone")
    width = max(len(name) for name in said)
    print(" " * width, *(f"{zone:>10}" for zone in zones))
    for name in said:
        print(f"{name:{width}}", *(f"{intervals[f'{name}/mae/{zone}'].value:10.3f}" for zone in zones))
    if models:
        print("\ndifferences (errors: below 0 is better; F1, correlation: above 0 is better)")
        print_table(intervals, [f"{name} - {other}" for name in models for other in BASELINES])
    beaten = True
    for name in models:
        for other in BASELINES:
            for key, title in FIGURES.items():
                mine, its = (intervals[f"{system}/{key}"].value for system in (name, other))
                if not (math.isnan(its) or (mine < its if key in LOWER else mine > its)):
                    print(f"{name} does not beat {other} in {title}: {mine:.3f}, {its:.3f}")
                    beaten = False
    return beaten


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the data set; default: that of the preset, below $MEDTRAIN_DATA")
    parser.add_argument("--preset", default="brixia", help="a data preset with zones, such as phantom_zones")
    parser.add_argument("--folds", type=int, default=5, help="1 judges the test part of a 70/15/15 split")
    parser.add_argument("--steps", type=int, help="of each training; default: medtrain's own")
    parser.add_argument("--minutes", type=float, help="wall clock of each training instead")
    parser.add_argument("--models", default=",".join(MODELS), help="of timm,zones; empty for the baselines alone")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--split-seed", type=int, default=42, help="of the folds")
    # the best of 0.001, 0.01, 0.1 and 1 on all held-out images of the Brixia set, in favour of the baseline
    parser.add_argument("--penalty", type=float, default=0.01, help="C of the logistic regression")
    parser.add_argument("--out", help="keep the runs here; default: a temporary folder")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    words = [f"data={arguments.preset}", "task=zones", f"seed={arguments.seed}", *arguments.overrides]
    if arguments.data is not None:
        words.append(f"data.root={arguments.data}")
    if arguments.steps is not None:
        words.append(f"trainer.max_steps={arguments.steps}")
    if arguments.minutes is not None:
        words.append(f"trainer.max_time={round(60 * arguments.minutes)}s")
    models = [name for name in arguments.models.split(",") if name]
    unknown_names = [name for name in models if name not in MODELS]
    if unknown_names:
        parser.error(f"--models {unknown_names[0]}: choose of {', '.join(MODELS)}")
    config: dict[str, Any] = load_config([*words, *MODELS["timm"]]).tree
    found: FoundImages = build("data", config["data"]).find()
    targets = found.sample_set.targets
    zones, classes = [target.target_name for target in targets], targets[0].classes or ()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.out or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not any("data.store=" in word for word in words):
            words.append(f"data.store={folder / 'store'}")
        parts_said: dict[str, list[Said]] = {name: [] for name in (*BASELINES, *models)}
        judged: list[Sample] = []
        for index, parts in enumerate(make_folds(found, arguments.folds, arguments.split_seed)):
            train, test = (
                [found.by_id[name] for key in keys for name in parts[key]] for keys in (("train", "val"), ("test",))
            )
            judged += test
            for name, said in judge_baselines(train, test, arguments.penalty).items():
                parts_said[name].append(said)
            splits = folder / f"splits{index}.json"
            save_parts(splits, parts)
            for name in models:
                run = folder / f"{name}-{index}"
                options = [*words, *MODELS[name], f"data.splits={splits}"]
                said, minutes = train_and_judge(run, options, test, zones, config["task"]["score"])
                parts_said[name].append(said)
                sizes = f"{len(parts['train'])} + {len(parts['val'])} images, judged on {len(test)}"
                print(f"fold {index}, {name}: trained {minutes:.1f} min on {sizes}", flush=True)
        everything = {
            name: Said(*(np.concatenate([getattr(one, key) for one in parts]) for key in ("classes", "grades")))
            for name, parts in parts_said.items()
        }
    unknown = find_unknown(classes, config["task"]["unknown_class"])
    sys.exit(0 if report(everything, judged, classes, zones, unknown) else 1)


if __name__ == "__main__":
    main()
