"""Memory while training from CT data sets of growing size: medtrain's store against MONAI's cache.

A contestant reads as many augmented patches as the largest set has cases, in a process of its own; printed is the most
resident memory for each number of cases, and what is resident at the end. The cases of larger sets are links to those
of a small one, so that the script needs little disk; every one is opened by itself. MONAI's CacheDataset holds the
cases in memory as float32.

    python scripts/bench_memory.py [--cases 25 100 200] [--monai-cases 5 10 20] [--peers-python PYTHON]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bench_augment import BATCH, FOREGROUND, JOBS, open_medtrain, prepare
from side_by_side import forget_peak, memory, serve, start


def medtrain_peak(folder: Path, count: int, samples: int) -> dict[str, float]:
    """Read patches of `count` cases."""
    import torch

    from medtrain.data.patches import PatchDataset
    from medtrain.data.sampler import EpochSampler
    from medtrain.data.store import Store, case_folder

    torch.set_num_threads(1)
    data = open_medtrain(JOBS["ct"], folder, folder / "Task99_Bench")
    known = sorted(data.store.keys)
    keys, cases = {}, {}
    for index in range(count):
        origin = known[index % len(known)]
        key = f"{data.store.keys[origin]}_{index}"
        target = case_folder(data.store.root, key)
        if not target.is_dir():
            target.mkdir()
            for file in case_folder(data.store.root, data.store.keys[origin]).iterdir():
                os.link(file, target / file.name)
        keys[f"case_{index:03d}"], cases[f"case_{index:03d}"] = key, data.store.cases[origin]
    patches = PatchDataset(
        store=Store(data.store.root, keys, cases),
        case_ids=sorted(keys),
        plan=data.plan,
        augment=data.augment,
        batch_size=BATCH,
        oversample_foreground=FOREGROUND,
        seed=0,
    )
    sampler = EpochSampler(num_samples=count, batch_size=BATCH, seed=0)
    before = memory()["rss"]
    forget_peak()
    for _, batch in zip(range(samples // BATCH), sampler.batches()):
        data.to_device(patches.collate([patches[key] for key in batch]), torch.device("cpu"))
    return {"before": before}


def monai_peak(folder: Path, count: int, samples: int) -> dict[str, float]:
    """Cache `count` cases and crop patches of them."""
    import torch
    from monai.data import CacheDataset, set_track_meta
    from monai.transforms import RandSpatialCropd, Transform

    torch.set_num_threads(1)
    set_track_meta(False)
    files = sorted((folder / "arrays").glob("*.npz"))
    before = memory()["rss"]
    forget_peak()

    class Load(Transform):
        def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
            with np.load(item["file"]) as content:
                return {"image": torch.from_numpy(content["image"]), "label": torch.from_numpy(content["label"][None])}

    items = [{"file": files[index % len(files)], "index": index} for index in range(count)]
    cached = CacheDataset(items, Load(), num_workers=1, progress=False)
    crop = RandSpatialCropd(["image", "label"], JOBS["ct"].patch, random_size=False)
    for index in range(samples):
        crop(dict(cached[index % count]))
    return {"before": before}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[25, 100, 200])
    parser.add_argument("--monai-cases", type=int, nargs="*", default=[5, 10, 20])
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that has monai")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="keeps what is generated; a temporary one if left out")
    arguments = parser.parse_args()
    if arguments.child:
        name, count, samples = arguments.child[0], int(arguments.child[1]), int(arguments.child[2])
        peak = {"medtrain": medtrain_peak, "MONAI": monai_peak}[name]
        serve(lambda _: peak(arguments.folder, count, samples))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "ct"
        folder.mkdir(parents=True, exist_ok=True)
        prepare(JOBS["ct"], folder, None)
        samples = max(arguments.cases)
        print(f"{samples} patches of {' x '.join(map(str, JOBS['ct'].patch))} voxels")
        print(f"{'':10}{'cases':>7}{'before, MB':>12}{'most, MB':>10}{'end, MB':>10}")
        for name, counts in (("medtrain", arguments.cases), ("MONAI", arguments.monai_cases)):
            for count in counts:
                python = sys.executable if name == "medtrain" else arguments.peers_python
                command = [python, __file__, "--child", name, str(count), str(samples), "--folder", str(folder)]
                contestant = start(name, command)
                if contestant is None:
                    break
                found = contestant.ask(None)
                contestant.close()
                print(
                    f"{name:10}{count:7d}{found['before']:12.0f}{found['peak']:10.0f}{found['rss']:10.0f}", flush=True
                )


if __name__ == "__main__":
    main()
