"""Phantoms of which it is known what can be learned: images with a table, bags of instances, views.

Every figure comes from medtrain's own commands with their defaults, run in turn: `medtrain train`, then
`medtrain evaluate --part test` on patients that training never saw, and `medtrain predict` for tables with emptied
cells. Intervals (95 %, by patient) are those of `evaluation/.../summary.json`, or made the same way.

    multimodal  Who is ill only images and table tell together: fusion should reach an AUROC above 0.95, the image alone
                and the table alone stay below 0.6, and emptied cells cost accuracy, not the command.
    bags        One cell in twenty-five makes a bag of 5 to 200 positive: the AUROC of bags, and that of the attention
                over the cells of positive bags, should be above 0.9.
    views       Three phases of a CT: the AUROC should be above chance; shows the attention to each phase.

    python scripts/bench_phantoms.py [--only multimodal,bags,views] [--minutes M | --steps N] [--seed 0] [--out DIR]
                                     [OVERRIDES ...]

Without --minutes or --steps every training takes medtrain's own default. Exit code 1 if a figure is not what it
should be.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medtrain.config.compose import load_config
from medtrain.data.sources.phantom import TABLE
from medtrain.data.sources.phantom_bags import PhantomBags
from medtrain.metrics.bootstrap import bootstrap_intervals
from medtrain.metrics.ranking import auroc
from medtrain.registry import build

ALONE = {"image alone": ("model=cnn",), "table alone": ("model=tabular",)}
EMPTIED = {  # name -> share of the visits that lose the image, and of those that lose the table
    "as it is": (0.0, 0.0),
    "half of the images removed": (0.5, 0.0),
    "half of the tables removed": (0.0, 0.5),
    "all images removed": (1.0, 0.0),
    "all tables removed": (0.0, 1.0),
    "nothing but names left": (1.0, 1.0),
}
CELLS = ("marker", "age", "sex")

Row = dict[str, str]


@dataclass(frozen=True)
class Figure:
    """A number with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Bench:
    """Runs commands, prints figures and notes whether they are what they should be.

    Args:
        folder: Of runs and data.
        words: Overrides of every training.
    """

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        self.folder = folder
        self.words = [*words, f"data.store={folder / 'store'}"]
        self.good = True

    def data(self, preset: str) -> tuple[str, str]:
        """The words that choose a phantom."""
        return f"data={preset}", f"data.root={self.folder / preset}"

    def train(self, name: str, *words: str) -> tuple[Path, dict[str, Any]]:
        """Train and judge the test part; the folders of the run and of its evaluation."""
        run = self.folder / name.replace(" ", "_")
        started = time.monotonic()
        medtrain("train", *words, *self.words, f"run.dir={run}")
        minutes = (time.monotonic() - started) / 60
        status = json.loads((run / "status.json").read_text())
        shown = " ".join(word for word in (*words, *self.words) if "/" not in word)
        print(f"  {name}: medtrain train {shown}: {status['step']} steps in {minutes:.1f} min", flush=True)
        medtrain("evaluate", str(run), "--part", "test")
        (test,) = run.glob("evaluation/test_step_*")
        return test, json.loads((test / "summary.json").read_text())

    def show(self, title: str, figure: Figure, wanted: Callable[[float], bool] | None = None, text: str = "") -> None:
        """Print a figure, and whether it is what it should be."""
        verdict = "" if wanted is None else f"   should be {text}: {'yes' if wanted(figure.value) else 'NO'}"
        self.good &= wanted is None or wanted(figure.value)
        print(f"    {title:44} {figure}{verdict}", flush=True)


def medtrain(*words: str) -> None:
    process = subprocess.run([sys.executable, "-m", "medtrain", *words], check=False, capture_output=True, text=True)
    if process.returncode != 0:
        sys.exit(f"medtrain {' '.join(words)} ended with {process.returncode}:\n{process.stderr[-3000:]}")


def of_summary(summary: Mapping[str, Any], metric: str) -> Figure:
    return Figure(summary["metrics"][metric], *summary["intervals"][metric])


def judge(scores: np.ndarray, labels: np.ndarray, patients: Sequence[str]) -> Figure:
    """The AUROC of scores [N] for labels [N]."""
    found = bootstrap_intervals(
        lambda chosen: {"auroc": auroc(scores[chosen], labels[chosen])},
        patients,
        generator=np.random.default_rng(0),
    )["auroc"]
    return Figure(found.value, found.low, found.high)


def read_csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def bench_multimodal(bench: Bench) -> None:
    data = bench.data("phantom_multimodal")
    test, summary = bench.train("fusion", *data)
    bench.show("image and table, AUROC", of_summary(summary, "auroc"), lambda value: value > 0.95, "above 0.95")
    judged = {row["case_id"] for row in read_csv(test / "cases.csv")}
    rows = [row for row in read_csv(bench.folder / "phantom_multimodal" / TABLE) if row["visit"] in judged]
    for name, removed in EMPTIED.items():
        figure = judge_emptied(bench.folder, test.parent.parent, rows, removed)
        bench.show(f"the same, {name}", figure, math.isfinite if name == "as it is" else None, "a number")
    for name, words in ALONE.items():
        _, summary = bench.train(name, *data, *words)
        bench.show(f"{name}, AUROC", of_summary(summary, "auroc"), lambda value: value < 0.6, "below 0.6")


def judge_emptied(folder: Path, run: Path, rows: Sequence[Row], removed: tuple[float, float]) -> Figure:
    """What a run says of rows of which some have lost their image or their tabular values, as new samples.

    Args:
        folder: For the tables.
        run: The run's folder.
        rows: Of the phantom's table.
        removed: Shares of the rows that lose the image, and the tabular values.
    """
    draws = np.random.default_rng(0).random((len(rows), 2)) < removed
    emptied = []
    for row, (no_image, no_table) in zip(rows, draws, strict=True):
        gone = (("image",) if no_image else ()) + (CELLS if no_table else ())
        emptied.append({key: "" if key in gone else value for key, value in row.items() if key != "ill"})
    name = f"emptied_{removed[0]:g}_{removed[1]:g}"
    table, out = folder / f"{name}.csv", folder / f"{name}_predictions.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(emptied[0]))
        writer.writeheader()
        writer.writerows(emptied)
    medtrain("predict", str(run), str(table), str(out), "--overwrite")
    said = {row["case_id"]: float(row["prob/ill"]) for row in read_csv(out)}
    scores = np.array([said[row["visit"]] for row in rows])
    assert np.isfinite(scores).all(), "a probability is not a number"
    return judge(scores, np.array([float(row["ill"]) for row in rows]), [row["patient"] for row in rows])


def bench_bags(bench: Bench) -> None:
    data = bench.data("phantom_bags")
    test, summary = bench.train("bags", *data)
    bench.show("bags, AUROC", of_summary(summary, "auroc"), lambda value: value > 0.9, "above 0.9")
    phantom: PhantomBags = build("data", load_config(list(data)).tree["data"])
    truth = phantom.instance_truth()
    for part, folder in (("test", test), ("val", test.parent)):
        attention = attention_of(folder)
        sizes = [len(weights) for weights in attention.values()]
        positive = {bag: weights for bag, weights in attention.items() if truth[bag].any()}
        print(f"    {part}: {len(sizes)} bags of {min(sizes)} to {max(sizes)}, {len(positive)} of them positive")
        each = np.array([auroc(weights, truth[bag].astype(float)) for bag, weights in positive.items()])
        found = bootstrap_intervals(
            lambda chosen, each=each: {"mean": float(each[chosen].mean())},  # type: ignore[misc]
            list(positive),
            generator=np.random.default_rng(0),
        )["mean"]
        figure = Figure(found.value, found.low, found.high)
        bench.show(f"{part}: instances, mean AUROC within bags", figure, lambda value: value > 0.9, "above 0.9")
        # weights are shares of a bag: times its size, those of small and large bags can be compared
        scores = np.concatenate([weights * len(weights) for weights in positive.values()])
        labels = np.concatenate([truth[bag] for bag in positive]).astype(float)
        bags = [bag for bag, weights in positive.items() for _ in weights]
        figure = judge(scores, labels, bags)
        bench.show(f"{part}: instances, AUROC over all bags", figure, lambda value: value > 0.9, "above 0.9")


def attention_of(folder: Path) -> dict[str, np.ndarray]:
    """Sample -> attention to each of its instances."""
    found: dict[str, list[float]] = {}
    for row in read_csv(folder / "attention.csv"):
        found.setdefault(row["case_id"], []).append(float(row["attention"]))
    return {sample: np.array(weights) for sample, weights in found.items()}


def bench_views(bench: Bench) -> None:
    test, summary = bench.train("views", *bench.data("phantom_views"))
    figure = of_summary(summary, "auroc")
    bench.show("views, AUROC", figure, lambda _: figure.low > 0.5, "above chance")
    weights: dict[str, list[float]] = {}
    for row in read_csv(test / "attention.csv"):
        if float(row["attention"]) > 0:  # 0 where a phase was not scanned
            weights.setdefault(row["view"], []).append(float(row["attention"]))
    for view, values in weights.items():
        print(f"    mean attention to {view:26} {np.mean(values):.3f}")


BENCHES = {"multimodal": bench_multimodal, "bags": bench_bags, "views": bench_views}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(BENCHES), help=f"of {','.join(BENCHES)}")
    parser.add_argument("--steps", type=int, help="of each training; default: medtrain's own limit")
    parser.add_argument("--minutes", type=float, help="wall clock of each training instead")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--out", help="keep data and runs in this new folder; default: a temporary folder")
    parser.add_argument("overrides", nargs="*", help="of every training")
    arguments = parser.parse_args()
    chosen = [name for name in arguments.only.split(",") if name]
    unknown = [name for name in chosen if name not in BENCHES]
    if unknown:
        parser.error(f"--only {unknown[0]}: choose of {', '.join(BENCHES)}")
    words = [f"seed={arguments.seed}", *arguments.overrides]
    if arguments.steps is not None:
        words.append(f"trainer.max_steps={arguments.steps}")
    if arguments.minutes is not None:
        words.append(f"trainer.max_time={round(60 * arguments.minutes)}s")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.out or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, words)
        for name in chosen:
            print(f"{name}, on the test part, 95 % intervals by patient", flush=True)
            BENCHES[name](bench)
    sys.exit(0 if bench.good else 1)


if __name__ == "__main__":
    main()
