"""What a sweep costs and saves, on the generated phantom: four measurements, each beside what one would do instead.

    overhead    Seconds from handing out a trial to the start of its training loop, and what they are made of, against
                starting `medtrain train` for each trial, as an objective around a command line does. Sweeps of three
                trials take turns with three such starts.
    pruning     Optimizer steps of a study with the default pruner and of one without that tries the same points, over
                several seeds of the sampler, and the best value of each.
    workers     Trials per hour with two workers and with one; every trial uses one core.
    kills       A study that is killed (SIGKILL) at random moments and resumed, against one that is left alone.

    python scripts/bench_sweep.py [overhead] [pruning] [workers] [kills] [--seeds 3] [--trials 24] [--kills 10]

Exit code 1 if a finished trial was lost or the number of trials differs after the kills.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from medtrain.registry import build

LR = "optimizer.lr=tag(log, interval(1e-5,1e-1))"
DROPOUT = "model.dropout=interval(0,0.5)"


def settings(folder: Path, steps: int) -> list[str]:
    return [
        "data=msd", f"data.root={folder / 'phantom'}", f"data.store={folder / 'store'}", "data.patch_size=[16,32,32]",
        "data.batch_size=2", "model.channels=[8,16,32]", "trainer.precision=fp32", f"trainer.max_steps={steps}",
        "trainer.eval_every=10%", "trainer.final_evaluation=false", "inference.mirror=false", "callbacks=[]",
        "logger=[csv,jsonl]",
    ]  # fmt: skip


def medtrain(*words: str) -> None:
    process = subprocess.run([sys.executable, "-m", "medtrain", *words], check=False, capture_output=True, text=True)
    if process.returncode != 0:
        sys.exit(f"medtrain {' '.join(words)} ended with {process.returncode}:\n{process.stderr[-3000:]}")


def sweep(folder: Path, name: str, *words: str) -> Path:
    """Run a sweep to its end; return its folder."""
    place = folder / name
    medtrain("sweep", *words, f"run.dir={place}")
    return place


def results(place: Path) -> list[dict[str, object]]:
    """Result files of the trials, by number."""
    return [json.loads(path.read_text()) for path in sorted((place / "trials").glob("*/result.json"))]


def rows(place: Path) -> list[dict[str, str]]:
    with (place / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def describe(values: Sequence[float]) -> str:
    return f"median {statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def bench_overhead(folder: Path, rounds: int) -> None:
    """Time from the start of a process to its first step: a trial, and a command line of its own."""
    trials, commands, whole = [], [], []
    parts: dict[str, list[float]] = {}
    for index in range(rounds):
        words = settings(folder, 1)
        place = sweep(folder, f"overhead{index}", *words, LR, "sweep.n_trials=3", f"sweep.seed={index}")
        found = results(place)
        trials += [float(result["overhead_s"]) for result in found]  # type: ignore[arg-type]
        whole += [float(result["seconds"]) for result in found]  # type: ignore[arg-type]
        for result in found:
            for part, seconds in result["overhead"].items():  # type: ignore[attr-defined]
                parts.setdefault(part, []).append(seconds)
        for lr in (1e-4, 1e-3, 1e-2):
            run = folder / f"command{index}-{lr}"
            started = time.time()
            medtrain("train", *words, f"optimizer.lr={lr}", "trainer.sanity_check=false", f"run.dir={run}")
            commands.append((run / "data.json").stat().st_mtime - started)  # written when all is ready to train
    print(f"overhead, from handing out a trial to the training loop, {len(trials)} trials: {describe(trials)} s")
    for part, seconds in parts.items():
        print(f"    {part}: {describe(seconds)} s")
    print(f"  a whole trial of one step, its evaluation and checkpoint included: {describe(whole)} s")
    print(f"  a command of its own for each: {describe(commands)} s")
    print(f"  ratio of the medians {statistics.median(commands) / statistics.median(trials):.1f}")


def bench_pruning(folder: Path, seeds: int, trials: int, steps: int, sampler: str) -> None:
    """Compute and best value with and without pruning."""
    saved, differences = [], []
    for seed in range(seeds):
        best, spent = {}, {}
        for pruner in ("none", "auto"):
            words = [*settings(folder, steps), LR, DROPOUT, f"sweep.n_trials={trials}", f"sweep.seed={seed}"]
            words += [f"sampler={sampler}", f"pruner={pruner}", "sweep.workers=2"]
            place = sweep(folder, f"pruning-{pruner}-{seed}", *words)
            found = results(place)
            spent[pruner] = sum(int(result["step"]) for result in found)  # type: ignore[call-overload]
            best[pruner] = max(
                float(result["metrics"]["val/dice"])  # type: ignore[index]
                for result in found
                if result["state"] == "complete"
            )
            pruned = sum(result["state"] == "pruned" for result in found)
            print(f"seed {seed}, pruner {pruner}: {spent[pruner]} steps, {pruned} pruned, best {best[pruner]:.4f}")
        saved.append(1 - spent["auto"] / spent["none"])
        differences.append(best["auto"] - best["none"])
        print(f"seed {seed}: saved {saved[-1]:.0%}, best {differences[-1]:+.4f}")
    print(f"pruning saved {describe(saved)} of the steps over {seeds} seeds of {trials} trials, sampler {sampler};")
    print(f"  best value with it less without: mean {statistics.fmean(differences):+.4f}")


def bench_workers(folder: Path, rounds: int, trials: int, steps: int) -> None:
    """Trials per hour of one and of two workers."""
    ratios = []
    for index in range(rounds):
        rate = {}
        for workers in (1, 2):
            words = [*settings(folder, steps), LR, f"sweep.n_trials={trials}", f"sweep.seed={index}", "pruner=none"]
            words += ["trainer.num_threads=1", f"sweep.workers={workers}", "sampler=random"]
            place = sweep(folder, f"workers{workers}-{index}", *words)
            ends = [path.stat().st_mtime for path in (place / "trials").glob("*/result.json")]
            seconds = max(ends) - (place / "config.yaml").stat().st_mtime  # from the study's creation
            rate[workers] = 3600 * trials / seconds
        ratios.append(rate[2] / rate[1])
        print(f"round {index}: {rate[1]:.0f} trials per hour with one worker, {rate[2]:.0f} with two")
    print(f"two workers against one: ratio {describe(ratios)}")


def bench_kills(folder: Path, kills: int, trials: int, steps: int) -> bool:
    """Kill a study at random; compare what was finished before each kill with what is there in the end."""
    words = [
        *settings(folder, steps),
        LR,
        f"sweep.n_trials={trials}",
        "sweep.workers=2",
        "trainer.checkpoint_every=5step",
    ]
    place = folder / "killed"
    rng = random.Random(0)
    finished: dict[str, str] = {}
    lost, done, command = [], 0, ["sweep", *words, f"run.dir={place}"]
    while True:
        process = subprocess.Popen(
            [sys.executable, "-m", "medtrain", *command],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            _, errors = process.communicate(timeout=rng.uniform(6, 25) if done < kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            done += 1
            now = finished_trials(place)
            lost += [number for number, row in finished.items() if now.get(number) != row]
            finished = now
            print(f"kill {done}: {len(finished)} trials finished so far")
            if (place / "journal.log").is_file():
                command = ["resume", str(place)]
            continue
        if process.returncode != 0:
            sys.exit(f"exit code {process.returncode}:\n{errors[-3000:]}")
        break
    now = finished_trials(place)
    lost += [number for number, row in finished.items() if now.get(number) != row]
    print(f"killed {done} times: {len(now)} of {trials} trials finished, {len(lost)} lost or changed")
    return done >= kills and len(now) == trials and not lost


def finished_trials(place: Path) -> dict[str, str]:
    """State, values and parameters of every finished trial, from the study itself."""
    if not (place / "journal.log").is_file():
        return {}
    code = (
        "import sys, json\n"
        "from medtrain.sweep.storage import open_storage\n"
        "from medtrain.sweep.study import SweepStudy\n"
        "study = SweepStudy.load(open_storage(sys.argv[1]), sys.argv[2])\n"
        "print(json.dumps({t.number: [t.state.name, t.values, t.params] for t in study.trials()"
        " if t.state.is_finished()}))"
    )
    journal = str(place / "journal.log")
    process = subprocess.run(
        [sys.executable, "-c", code, journal, place.name], check=False, capture_output=True, text=True
    )
    if process.returncode != 0:
        return {}  # killed before the study was made
    return {number: json.dumps(row) for number, row in json.loads(process.stdout).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["overhead", "pruning", "workers", "kills"])
    parser.add_argument("--rounds", type=int, default=3, help="of overhead and workers")
    parser.add_argument("--seeds", type=int, default=3, help="of the pruning")
    parser.add_argument("--trials", type=int, default=24, help="of each study of the pruning")
    parser.add_argument(
        "--sampler", default="random", help="of the pruning; by default both studies try the same points"
    )
    parser.add_argument("--steps", type=int, default=100, help="of each trial")
    parser.add_argument("--kills", type=int, default=10)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build("data", {"name": "phantom", "root": str(folder / "phantom"), "num_cases": 10}).discover()
        if "overhead" in chosen.parts:
            bench_overhead(folder, chosen.rounds)
        if "workers" in chosen.parts:
            bench_workers(folder, chosen.rounds, 6, chosen.steps)
        if "pruning" in chosen.parts:
            bench_pruning(folder, chosen.seeds, chosen.trials, chosen.steps, chosen.sampler)
        if "kills" in chosen.parts and not bench_kills(folder, chosen.kills, 12, chosen.steps):
            sys.exit("the killed study is not what it should be")


if __name__ == "__main__":
    main()
