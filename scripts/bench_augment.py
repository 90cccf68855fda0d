"""Training samples per second with nnU-Net's augmentation: medtrain, nnU-Net and MONAI in one run.

Each is a process of its own with one thread. It reads patches of prepared cases with a third of them centred on
foreground, changes them with nnU-Net's list of transforms at nnU-Net's probabilities and puts two side by side; the
network is left out. Rounds alternate between the contestants; printed are samples per second of wall-clock and of CPU
time (equal on a quiet machine) as median and range of the rounds, the ratio to medtrain, and the most resident memory.
MONAI's transforms are those closest to the list, on cases cached in memory as plain tensors.

    python scripts/bench_augment.py [ct|hippocampus] [--rounds 5] [--samples 40] [--data FOLDER] [--peers-python PYTHON]

`--data` takes a folder in the Decathlon's layout instead of generated cases.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import side_by_side
from side_by_side import Contestant, make_ct_case, make_mr_case, serve, spread, start, write_decathlon

BATCH = 2
FOREGROUND = 0.33


@dataclass(frozen=True)
class Job:
    """What is read: the patch (D, H, W), and the generated cases."""

    patch: tuple[int, int, int]
    cases: int
    channel: str
    spacing: tuple[float, float, float]
    make: Callable[[int], tuple[np.ndarray, np.ndarray]]


JOBS = {
    "ct": Job((64, 128, 128), 8, "CT", (1.5, 0.8, 0.8), lambda i: make_ct_case(i, (150, 320, 320))),
    "hippocampus": Job((40, 56, 40), 100, "MRI", (1.0, 1.0, 1.0), make_mr_case),
}


def prepare(job: Job, folder: Path, data: Path | None) -> None:
    """Write the cases, bring them into medtrain's store, and save them normalised for the others."""
    root = data or write_decathlon(
        folder / "Task99_Bench",
        job.make,
        count=job.cases,
        spacing=job.spacing,
        channel=job.channel,
        labels=["one", "two"],
    )
    opened = open_medtrain(job, folder, root)
    arrays = folder / "arrays"
    arrays.mkdir(exist_ok=True)
    for case_id in opened.split["train"][: job.cases]:
        item = opened.evaluation_item(case_id)
        np.savez(arrays / f"{case_id}.npz", image=item["image"].numpy(), label=item["label"])


def open_medtrain(job: Job, folder: Path, root: Path) -> Any:
    """Medtrain's own way from files to training data."""
    from medtrain.data.msd import MsdData
    from medtrain.data.source import Machine
    from medtrain.data.transforms.nnunet import NnunetAugmentation

    settings = MsdData(
        root=str(root),
        store=str(folder / "store"),
        fold=None,
        spatial_dims=3,
        patch_size=job.patch,
        batch_size=BATCH,
        num_workers=0,
        oversample_foreground=FOREGROUND,
    )
    found = settings.find()
    plan, _ = settings.derive(found, Machine("cpu", 16.0, 1), model={"name": "unet"}, augment={})
    augment = NnunetAugmentation(in_channels=plan.in_channels)
    return settings.open(plan, found, settings.prepare(plan, found), augment=augment, seed=0)


def read_arrays(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The normalised cases: id, image float32 [C, D, H, W], label uint8 [D, H, W]."""
    for path in sorted((folder / "arrays").glob("*.npz")):
        with np.load(path) as content:
            yield path.stem, content["image"], content["label"]


def medtrain_batches(job: Job, folder: Path, root: Path) -> Iterator[tuple[Any, Any]]:
    """Batches as the engine gets them on a CPU."""
    import torch

    torch.set_num_threads(1)
    data = open_medtrain(job, folder, root)
    cpu = torch.device("cpu")
    for batch in data.train_batches(0):
        ready = data.to_device(batch, cpu)
        yield ready["image"], ready["label"]


def nnunet_batches(job: Job, folder: Path) -> Iterator[tuple[Any, Any]]:
    """nnU-Net's data set, loader and transforms, in this process."""
    import torch
    from batchgenerators.utilities.file_and_folder_operations import write_pickle
    from nnunetv2.configuration import ANISO_THRESHOLD
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    del write_pickle
    torch.set_num_threads(1)
    store = folder / "nnunet"
    if not store.is_dir():
        store.mkdir()
        for case_id, image, label in read_arrays(folder):
            params = comp_blosc2_params(image.shape, job.patch, 4)
            params_label = comp_blosc2_params((1, *label.shape), job.patch, 1)
            locations = {}
            for index in range(1, int(label.max()) + 1):
                found = np.argwhere(label[None] == index)
                keep = np.random.default_rng(0).permutation(len(found))[:10000]
                locations[index] = found[np.sort(keep)]
            nnUNetDatasetBlosc2.save_case(
                image,
                label[None].astype(np.int16),
                {"class_locations": locations},
                str(store / case_id),
                chunks=params[1],
                blocks=params[0],
                chunks_seg=params_label[1],
                blocks_seg=params_label[0],
            )
    dataset = nnUNetDatasetBlosc2(str(store))
    degrees = np.pi / 6
    rotation = (-degrees, degrees)
    assert max(job.patch) / job.patch[0] <= ANISO_THRESHOLD
    initial = get_patch_size(job.patch, *[rotation] * 3, (0.85, 1.25))
    transforms = nnUNetTrainer.get_training_transforms(
        job.patch, rotation, None, (0, 1, 2), False, use_mask_for_norm=[False], foreground_labels=[1, 2]
    )

    class Labels:
        all_labels: ClassVar = [1, 2]
        has_ignore_label = False

    loader = nnUNetDataLoader(
        dataset, BATCH, initial, job.patch, Labels(), oversample_foreground_percent=FOREGROUND, transforms=transforms
    )
    while True:
        batch = next(loader)
        yield batch["data"], batch["target"]


def monai_batches(job: Job, folder: Path) -> Iterator[tuple[Any, Any]]:
    """MONAI's dictionary transforms on cached plain tensors."""
    import torch
    from monai.data import set_track_meta
    from monai.transforms import (
        Compose,
        OneOf,
        RandAdjustContrastd,
        RandAffined,
        RandCropByPosNegLabeld,
        RandFlipd,
        RandGaussianNoised,
        RandGaussianSmoothd,
        RandScaleIntensityd,
        RandSimulateLowResolutiond,
        RandSpatialCropd,
        SpatialPadd,
    )

    torch.set_num_threads(1)
    set_track_meta(False)
    both, angle = ["image", "label"], np.pi / 6
    shared: dict[str, Any] = {"keys": both, "spatial_size": job.patch, "mode": ("bilinear", "nearest")}
    crop = OneOf(
        [
            RandSpatialCropd(both, job.patch, random_size=False),
            RandCropByPosNegLabeld(both, "label", job.patch, pos=1, neg=0, num_samples=1),
        ],
        weights=[1 - FOREGROUND, FOREGROUND],
    )
    changes = Compose(
        [
            SpatialPadd(both, job.patch),
            crop,
            RandAffined(**shared, prob=0.2, rotate_range=[angle] * 3, padding_mode="zeros"),
            RandAffined(**shared, prob=0.2, scale_range=[(-0.3, 0.4)] * 3, padding_mode="zeros"),
            RandGaussianNoised("image", prob=0.1, std=0.1),
            RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.1),
            RandScaleIntensityd("image", 0.25, prob=0.15),
            RandAdjustContrastd("image", prob=0.15, gamma=(0.75, 1.25), retain_stats=True),
            RandSimulateLowResolutiond("image", prob=0.125, zoom_range=(0.5, 1.0)),
            RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            *[RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)],
        ]
    ).set_random_state(0)
    cache = [
        {"image": torch.from_numpy(image), "label": torch.from_numpy(label[None].copy())}
        for _, image, label in read_arrays(folder)
    ]
    order = np.random.default_rng(0)
    while True:
        samples = []
        for _ in range(BATCH):
            sample = changes(dict(cache[order.integers(len(cache))]))
            samples.append(sample[0] if isinstance(sample, list) else sample)
        yield torch.stack([s["image"] for s in samples]), torch.stack([s["label"][0] for s in samples])


def child(name: str, kind: str, folder: Path, root: Path) -> None:
    """A contestant: checks what it makes, then makes as many samples as asked for."""
    job = JOBS[kind]
    if name == "medtrain":
        batches = medtrain_batches(job, folder, root)
    else:
        batches = {"nnU-Net": nnunet_batches, "MONAI": monai_batches}[name](job, folder)
    side_by_side.forget_peak()
    foreground, voxels, means = 0, 0, []
    for _ in range(12):
        image, label = next(batches)
        assert tuple(image.shape) == (BATCH, 1, *job.patch), image.shape
        assert tuple(label.shape[-3:]) == job.patch, label.shape
        assert bool(image.isfinite().all()), "values that are not finite"
        assert set(label.unique().tolist()) <= {-1, 0, 1, 2}, "values that are no label"
        foreground, voxels = foreground + int((label > 0).sum()), voxels + label.numel()
        means.append(float(image.mean()))

    def work(count: int) -> dict[str, float]:
        for _ in range(count // BATCH):
            next(batches)
        return {"samples": count // BATCH * BATCH}

    serve(work, foreground=foreground / voxels, mean=statistics.fmean(means))


def compare(kind: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Let all work in turn and print the table."""
    job = JOBS[kind]
    prepare(dataclasses.replace(job, cases=arguments.cases or job.cases), folder, arguments.data)
    root = arguments.data or folder / "Task99_Bench"
    contestants: list[Contestant] = []
    for name in ("medtrain", "nnU-Net", "MONAI"):
        python = sys.executable if name == "medtrain" else arguments.peers_python
        command = [python, __file__, kind, "--child", name, "--folder", str(folder), "--data", str(root)]
        contestant = start(name, command) if name in arguments.only else None
        if contestant is not None:
            contestants.append(contestant)
    results: dict[str, list[dict[str, Any]]] = {contestant.title: [] for contestant in contestants}
    for _ in range(arguments.rounds):
        for contestant in contestants:
            few = 1 if contestant.title == "medtrain" else 4  # the slower ones need fewer for the same time
            results[contestant.title].append(contestant.ask(max(BATCH, arguments.samples // few)))
    print(f"\n{kind}, patch {' x '.join(map(str, job.patch))}, one process, one thread, {arguments.rounds} rounds")
    print(f"{'':10}{'samples/s':>26}{'per s of CPU':>30}{'ratio':>9}{'peak MB':>9}{'foreground':>12}{'mean':>8}")
    ours = 0.0
    for contestant in contestants:
        rounds, ready = results[contestant.title], contestant.ready
        cpu = [r["samples"] / r["cpu"] for r in rounds]
        wall = [r["samples"] / r["wall"] for r in rounds]
        ours = ours or statistics.median(cpu)
        numbers = f"{ours / statistics.median(cpu):9.2f}{max(r['peak'] for r in rounds):9.0f}"
        statistic = f"{ready['foreground']:12.4f}{ready['mean']:8.3f}"
        print(f"{contestant.title:10}{spread(wall):>26}{spread(cpu):>30}{numbers}{statistic}")
        contestant.close()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="*", choices=[*JOBS, []], help="what to compare; both if left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=60, help="of medtrain per round; the others make a quarter")
    parser.add_argument("--cases", type=int, default=0, help="generated cases")
    parser.add_argument("--only", nargs="+", default=["medtrain", "nnU-Net", "MONAI"])
    parser.add_argument("--data", type=Path, help="folder in the Decathlon's layout")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that has nnunetv2 and monai")
    parser.add_argument("--folder", type=Path, help="keeps what is generated; a temporary one if left out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.kind[0], arguments.folder, arguments.data)
        return
    for kind in arguments.kind or JOBS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (arguments.folder or Path(temporary)) / kind
            folder.mkdir(parents=True, exist_ok=True)
            compare(kind, arguments, folder)


if __name__ == "__main__":
    main()
