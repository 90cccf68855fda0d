"""Train the 3-D U-Net on MSD Hippocampus for a wall-clock budget and print the Dice per minute.

Everything counts: start of Python, reading and preparing the data, evaluations and the final evaluation. Uses the
command line as a user would, on fold 0 of nnU-Net's split.

    python scripts/bench_hippocampus.py [--root DIR/Task04_Hippocampus] [--minutes 20] [--seed 0] [OVERRIDES ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_root = Path(os.environ.get("MEDTRAIN_DATA", "data")) / "Task04_Hippocampus"
    parser.add_argument("--root", default=str(default_root), help="default: Task04_Hippocampus below $MEDTRAIN_DATA")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="keep the run here; default: a temporary folder")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(arguments.out or Path(folder) / "run")
        words = [
            sys.executable, "-m", "medtrain", "train", "model=unet", "data=msd_hippocampus",
            f"data.root={arguments.root}", "data.fold=0", f"seed={arguments.seed}", f"run.dir={run}",
            f"data.store={Path(folder) / 'store'}", f"trainer.max_time={round(60 * arguments.minutes)}s",
            "trainer.eval_every=5%", *arguments.overrides,
        ]  # fmt: skip
        started = time.monotonic()
        subprocess.run(words, check=True)
        seconds = time.monotonic() - started
        elapsed = {
            row["step"]: row["perf/elapsed_s"] for row in read_rows(run / "perf.jsonl") if "perf/elapsed_s" in row
        }
        print(f"\nbudget {arguments.minutes:g} min, whole command {seconds / 60:.2f} min, seed {arguments.seed}")
        print("minute    step  Dice    anterior  posterior")
        for row in read_rows(run / "metrics.jsonl"):
            if "val/dice" in row:
                print(
                    f"{elapsed[row['step']] / 60:6.2f}  {row['step']:6d}  {row['val/dice']:.4f}  "
                    f"{row['val/dice/Anterior']:.4f}    {row['val/dice/Posterior']:.4f}"
                )
        summary = json.loads((run / "evaluation" / "summary.json").read_text())
        cases, dice = summary["num_cases"], summary["mean"]["dice"]
        print(f"final evaluation (with test-time augmentation), {cases} cases: Dice {dice:.4f}")


if __name__ == "__main__":
    main()
