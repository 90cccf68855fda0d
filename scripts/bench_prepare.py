"""Time of planning and preparing 260 hippocampus-sized cases from nothing: the whole command, process start included.

`medtrain data prepare` with an empty store against nnU-Net's `plan_and_preprocess` of its full-resolution configuration
with two processes, with and without its integrity check. Each run starts from a fresh output folder; rounds alternate.
Printed are wall-clock and CPU seconds (of all processes) as median and range, and the most resident memory of one
process. MONAI has no such command.

    python scripts/bench_prepare.py [--rounds 3] [--cases 260] [--data FOLDER] [--peers-python PYTHON]

`--data` takes a folder in the Decathlon's layout instead of generated cases.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import make_mr_case, spread, write_decathlon

NNUNET = """
import sys
from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry
if __name__ == "__main__":
    plan_and_preprocess_entry()
"""


def run(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Run a command to its end; its wall-clock, CPU time with that of its children, and largest resident process."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status:
        last = said.strip().splitlines()
        raise RuntimeError(last[-1] if last else f"status {status}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "peak": usage.ru_maxrss / 1e3}


def nnunet_raw(root: Path, folder: Path) -> None:
    """nnU-Net's own layout of the same files, as links."""
    description = json.loads((root / "dataset.json").read_text())
    target = folder / "raw" / "Dataset098_Bench"
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir(parents=True, exist_ok=True)
    for entry in description["training"]:
        image, label = (root / entry[part] for part in ("image", "label"))
        stem = image.name.removesuffix(".nii.gz")
        (target / "imagesTr" / f"{stem}_0000.nii.gz").symlink_to(image.resolve())
        (target / "labelsTr" / label.name).symlink_to(label.resolve())
    names = {name: int(value) for value, name in description["labels"].items()}
    content = {
        "channel_names": description["modality"],
        "labels": names,
        "numTraining": len(description["training"]),
        "file_ending": ".nii.gz",
    }
    (target / "dataset.json").write_text(json.dumps(content))


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=260)
    parser.add_argument("--only", nargs="+", default=["medtrain", "nnU-Net", "nnU-Net+check"])
    parser.add_argument("--data", type=Path, help="folder in the Decathlon's layout")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that has nnunetv2")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root = (arguments.data or folder / "Task98_Bench").absolute()
        if arguments.data is None:
            labels = ["anterior", "posterior"]
            write_decathlon(root, make_mr_case, count=arguments.cases, spacing=(1, 1, 1), channel="MRI", labels=labels)
        count = len(json.loads((root / "dataset.json").read_text())["training"])
        nnunet_raw(root, folder)
        (folder / "nnunet.py").write_text(NNUNET)
        store, preprocessed = folder / "store", folder / "preprocessed"
        ours = ["data", "prepare", "data=msd", f"data.root={root}", f"data.store={store}"]
        plain = [
            arguments.peers_python,
            str(folder / "nnunet.py"),
            *["-d", "98", "-c", "3d_fullres", "-np", "2", "-npfp", "2"],
        ]
        commands = {
            "medtrain": [sys.executable, "-m", "medtrain", *ours],
            "nnU-Net": plain,
            "nnU-Net+check": [*plain, "--verify_dataset_integrity"],
        }
        places = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "preprocessed", "nnUNet_results": "results"}
        environment = {name: str(folder / place) for name, place in places.items()}
        results: dict[str, list[dict[str, float]]] = {name: [] for name in commands if name in arguments.only}
        for _ in range(arguments.rounds):
            for name in list(results):
                shutil.rmtree(store, ignore_errors=True)
                shutil.rmtree(preprocessed, ignore_errors=True)
                try:
                    results[name].append(run(commands[name], environment))
                except (RuntimeError, OSError) as error:
                    print(f"{name} takes no part: {error}")
                    del results[name]
                    continue
                made = list(store.glob("cases/*/case.json")) or list(
                    preprocessed.glob("*/nnUNetPlans_3d_fullres/*.pkl")
                )
                assert len(made) == count, f"{name} has prepared {len(made)} of {count} cases"
        print(f"\n{count} cases, {os.cpu_count()} cores, {arguments.rounds} rounds")
        print(f"{'':16}{'s':>26}{'s of CPU':>26}{'ratio':>8}{'MB':>7}")
        base = 0.0
        for name, rounds in results.items():
            wall, cpu = ([r[key] for r in rounds] for key in ("wall", "cpu"))
            base = base or statistics.median(wall)
            peak = max(r["peak"] for r in rounds)
            print(f"{name:16}{spread(wall):>26}{spread(cpu):>26}{statistics.median(wall) / base:8.2f}{peak:7.0f}")


if __name__ == "__main__":
    main()
