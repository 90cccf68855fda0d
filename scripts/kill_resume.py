"""Kill a training run again and again and show that nothing is lost.

Trains twice on the generated phantom with the same seed: once straight through, once killed at random moments (SIGKILL,
SIGTERM or Ctrl-C in turn) and resumed, until it is done. Then compares the final weights, averaged weights and
optimizer state bit for bit, and the metrics files byte for byte. Exit code 1 if anything differs.

    python scripts/kill_resume.py [--kills 20] [--steps 300] [--workers 0] [--seed 0]
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)


def command(verb: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "medtrain", verb, *words]


def settings(folder: Path, steps: int, workers: int) -> list[str]:
    return [
        f"trainer.max_steps={steps}", "trainer.eval_every=15step", "trainer.checkpoint_every=4step",
        "trainer.log_every=3step", "trainer.accumulate=2", "trainer.final_evaluation=false",
        f"data.root={folder / 'phantom'}", f"data.store={folder / 'store'}", f"data.num_workers={workers}",
        "data.patch_size=[24,32,32]", "data.batch_size=2", "model.channels=[8,16,32]", "model.dropout=0.1",
        "logger=[csv,jsonl]", "callbacks=[]",
    ]  # fmt: skip


def run_until_killed(words: list[str], delay: float, number: int) -> bool:
    """Run a command and send it a signal after a while; return whether it was still running then."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=delay)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        _, errors = process.communicate()
        if process.returncode not in (75, -signal.SIGKILL, 130, -signal.SIGINT, -signal.SIGTERM, 0):
            sys.exit(f"exit code {process.returncode} after {signal.Signals(number).name}:\n{errors}")
        return process.returncode != 0
    if process.returncode != 0:
        sys.exit(f"exit code {process.returncode}:\n{errors}")
    return False


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step_*"))[-1]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def compare(straight: Path, killed: Path) -> list[str]:
    """Names of what differs."""
    a, b = newest(straight), newest(killed)
    differs = [] if a.name == b.name else [f"last checkpoint ({a.name}, {b.name})"]
    for name in ("model.safetensors", "ema.safetensors"):
        if not equal(load_file(a / name), load_file(b / name)):
            differs.append(name)
    states = [torch.load(path / "state.pt", weights_only=True) for path in (a, b)]
    for key in ("optimizer", "schedule", "meter", "ema_updates", "best", "history"):
        if not equal(states[0][key], states[1][key]):
            differs.append(f"state.pt: {key}")
    differs += [
        name for name in ("metrics.csv", "metrics.jsonl")
        if (straight / name).read_bytes() != (killed / name).read_bytes()
    ]  # fmt: skip
    return differs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    # a shell starts background jobs with Ctrl-C ignored, which the trainings would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        straight, killed = folder / "straight", folder / "killed"
        words = settings(folder, arguments.steps, arguments.workers)
        started = time.monotonic()
        subprocess.run(
            command("train", *words, f"run.dir={straight}"), check=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        length = time.monotonic() - started
        print(f"straight run: {arguments.steps} steps in {length:.1f} s", flush=True)

        kills = 0
        while True:
            fresh = not (killed / "status.json").exists()
            verb = command("train", *words, f"run.dir={killed}") if fresh else command("resume", str(killed))
            if kills == arguments.kills:
                subprocess.run(verb, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                break
            # from the first import to well into training
            delay = rng.uniform(0.5, 4.0 + 1.5 * length / max(arguments.kills, 1))
            number = SIGNALS[kills % len(SIGNALS)]
            if not run_until_killed(verb, delay, number):
                print("the run ended before the next kill")
                break
            kills += 1
            step = newest(killed).name if list((killed / "checkpoints").glob("step_*")) else "no checkpoint yet"
            print(f"kill {kills}: {signal.Signals(number).name} after {delay:.1f} s, newest: {step}", flush=True)
        differs = compare(straight, killed)
        print(f"{kills} kills; " + (f"DIFFERENT: {', '.join(differs)}" if differs else "identical bit for bit"))
    sys.exit(1 if differs else 0)


if __name__ == "__main__":
    main()
