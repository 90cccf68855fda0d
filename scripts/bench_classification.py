"""Time medtrain's reading of training images against timm's loader and a plain torchvision pipeline, in one run.

All read the same PNG files (colours, 256 to 512 pixels a side, written to a temporary folder) and give batches of
normalised float32 as ResNet-18 takes them: decoding, augmentation, collating and normalising included.

- own augmentation: medtrain's `augment=images` (whole image, mirroring, affine, brightness and contrast, noise), timm's
  default for training (random resized crop, mirroring, colour jitter), torchvision's usual one (random resized crop,
  mirroring). `copies` is medtrain with `data.cache=true`, its default for such files.
- light augmentation: a random crop and mirroring in all three, and nothing else.

A time is that of a whole epoch by workers that are already there. medtrain's read on from epoch to epoch, those of a
DataLoader stop at its end: what medtrain's read before its turn is thrown away, so that all begin with nothing read.
Before each turn everybody has come to rest. `from nothing` is an epoch with the start of the workers. Contestants take
turns in every round, and each round begins with another one; a ratio is that of images per second in the same round,
above 1 if medtrain is faster.

On a machine that has other things to do, `--cpu-time` measures what an epoch costs instead: processor seconds of this
process and of all below it, from rest to rest, so that as much is read as is taken.

    python scripts/bench_classification.py [--rounds 5] [--images 512] [--size 224] [--workers 0,2] [--train-steps 4]
    python scripts/bench_classification.py --cpu-time --images 128
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medtrain.data.images.module import ImageModule
from medtrain.data.source import Machine
from medtrain.registry import build, get

# timm and torchvision are imported where they are used: medtrain's workers import this file, too

CPU = torch.device("cpu")
LIGHT = {"resize": "crop", "affine_p": 0.0, "color_p": 0.0, "noise_p": 0.0}

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Job:
    """What all contestants do.

    Args:
        root: Folder of one folder per class.
        store: Folder of medtrain's copies.
        images: Number of images.
        size: Rows and columns of the network's input.
        batch: Images of a batch.
    """

    root: Path
    store: Path
    images: int
    size: int
    batch: int


def write_images(root: Path, count: int) -> None:
    """PNG files with what photographs have: large areas of smooth colour, edges, texture and a little noise."""
    rng = np.random.default_rng(0)
    for index in range(count):
        height, width = (int(n) for n in rng.integers(256, 513, 2))
        image = cv2.resize(rng.random((5, 5, 3), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(12):
            centre = (int(rng.integers(width)), int(rng.integers(height)))
            axes = (int(rng.integers(8, 90)), int(rng.integers(8, 90)))
            color = [float(c) for c in rng.random(3)]
            cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, color, -1, cv2.LINE_AA)
        texture = cv2.resize(rng.standard_normal((64, 64), dtype=np.float32), (width, height))
        image += 0.05 * texture[..., None] + 0.006 * rng.standard_normal((height, width, 1), dtype=np.float32)
        path = root / f"class_{index % 2}" / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image.clip(0, 1)).astype(np.uint8)).save(path)


def open_medtrain(job: Job, *, workers: int, copies: bool, augment: dict[str, Any]) -> ImageModule:
    """The data of a run as `medtrain train data=image_folder` opens it."""
    chosen = {"name": "images", **get("augment", "images").defaults(), **augment}
    settings = build(
        "data",
        {
            "name": "image_folder",
            "root": str(job.root),
            "store": str(job.store),
            "image_size": job.size,
            "batch_size": job.batch,
            "normalization": "imagenet",
            "shares": (1.0, 0.0, 0.0),
            "cache": copies,
            "num_workers": workers,
        },
    )
    found = settings.find()
    plan, _ = settings.derive(found, Machine("cpu", 8.0, 2), model={"name": "timm"}, augment=chosen)
    sizes = {"image_size": plan.image_size, "spatial_dims": plan.spatial_dims, "in_channels": plan.in_channels}
    module: ImageModule = settings.open(
        plan, found, settings.prepare(plan, found), augment=build("augment", chosen, **sizes), seed=0
    )
    return module


class Medtrain:
    """medtrain's batches, without end, as they go to a network in torch's default format of memory."""

    def __init__(self, job: Job, *, workers: int, copies: bool = False, augment: dict[str, Any] | None = None) -> None:
        self.module = open_medtrain(job, workers=workers, copies=copies, augment=augment or {})
        self.batches = self.module.train_batches()
        self.number = self.module.batches_per_epoch
        self.ahead = 2 * workers

    def begin(self) -> None:
        """Take what was read ahead while others had their turn."""
        for _ in itertools.islice(self.batches, self.ahead):
            pass

    def epoch(self) -> Batches:
        """As many batches as hold every image once."""
        for batch in itertools.islice(self.batches, self.number):
            ready = self.module.to_device(batch, CPU)
            yield ready["image"], ready["target"][:, 0].long()

    def close(self) -> None:
        """End the workers."""
        self.module.close()


class Loader:
    """A DataLoader; with workers that stay from epoch to epoch.

    Args:
        loader: What is iterated over.
    """

    ahead = 0

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def begin(self) -> None:
        """Nothing is read before an epoch."""

    def epoch(self) -> Batches:
        """Every image once."""
        yield from self.loader

    def close(self) -> None:
        """End the workers, which live as long as the loader."""
        del self.loader


def open_timm(job: Job, *, workers: int, light: bool) -> Loader:
    """Timm's own dataset and loader with its defaults for training, or no more than a crop and mirroring."""
    import timm.data

    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=str(job.root)),
        input_size=(3, job.size, job.size),
        batch_size=job.batch,
        is_training=True,
        color_jitter=None if light else 0.4,
        interpolation="bilinear",
        num_workers=workers,
        persistent_workers=workers > 0,
        device=CPU,
    )
    return Loader(loader)


def open_torchvision(job: Job, *, workers: int) -> Loader:
    """ImageFolder and DataLoader as torchvision's own examples have them."""
    import torchvision.transforms as tv
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from torchvision.datasets import ImageFolder

    normalize = tv.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    transform = tv.Compose([tv.RandomResizedCrop(job.size), tv.RandomHorizontalFlip(), tv.ToTensor(), normalize])
    dataset = ImageFolder(str(job.root), transform)
    return Loader(
        DataLoader(
            dataset,
            batch_size=job.batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
    )


def read_next(contestant: Any, job: Job, *, cpu_time: bool) -> float:
    """Seconds of an epoch but the first, by the clock on the wall or of processors."""
    rest()
    if not cpu_time:
        contestant.begin()
        return read_all(contestant, job)
    workers, here = worker_seconds(), time.process_time()
    read_all(contestant, job)
    here = time.process_time() - here
    rest()
    return here + worker_seconds() - workers


def read_all(contestant: Any, job: Job) -> float:
    """Seconds of an epoch."""
    started = time.perf_counter()
    count = 0
    for image, target in contestant.epoch():
        assert image.shape[1:] == (3, job.size, job.size)
        assert image.dtype == torch.float32
        count += len(target)
    elapsed = time.perf_counter() - started
    assert count == job.images, f"{count} images instead of {job.images}"
    return elapsed


def rest() -> None:
    """Wait until the processes below this one do nothing: all workers have started, and read what they may."""
    last, still = worker_seconds(), 0
    while still < 3:
        time.sleep(0.2)
        now = worker_seconds()
        still = still + 1 if now - last < 0.02 else 0
        last = now


def worker_seconds() -> float:
    """Processor seconds of all processes below this one; Linux counts them in hundredths."""
    parents: dict[int, int] = {}
    used: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sum(used[pid] for pid in below - {os.getpid()})


class Trainer:
    """ResNet-18 and AdamW.

    Args:
        fast: As medtrain trains on a CPU by default: bfloat16 where the CPU has it, channels last.
    """

    def __init__(self, *, fast: bool) -> None:
        import timm

        from medtrain.engine.precision import choose_precision

        torch.manual_seed(0)
        self.bf16 = fast and choose_precision("auto", CPU)[0] == "bf16"
        self.format = torch.channels_last if fast else torch.contiguous_format
        self.model = timm.create_model("resnet18", num_classes=2).to(memory_format=self.format)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def train(self, batches: Batches, steps: int) -> float:
        """Seconds of some steps, reading included; one more before them is not counted."""
        self.step(*next(batches))
        started = time.perf_counter()
        for image, target in itertools.islice(batches, steps):
            self.step(image, target)
        return time.perf_counter() - started

    def step(self, image: Tensor, target: Tensor) -> None:
        """Forward, backward, update."""
        image = image.to(memory_format=self.format)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = nn.functional.cross_entropy(self.model(image), target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def train(contestant: Any, trainer: Trainer, steps: int) -> float:
    """Seconds of some steps."""
    with closing(contestant.epoch()) as batches:
        return trainer.train(batches, steps)


def measure(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds by contestant and round, in turn."""
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        start = index % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(runs[name]())
    return times


def report(heading: str, times: dict[str, list[float]], count: int, pairs: Sequence[tuple[str, str]]) -> None:
    """Print medians, spreads and ratios of the rounds."""
    print(f"\n{heading}")
    for name, values in times.items():
        rates = [count / value for value in values]
        print(f"  {name:<24} {statistics.median(rates):8.1f} images/s [{min(rates):.1f}, {max(rates):.1f}]")
    for ours, theirs in pairs:
        ratios = [b / a for a, b in zip(times[ours], times[theirs], strict=True)]
        spread = f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"  {ours} : {theirs} = {statistics.median(ratios):.2f} {spread}")


def bench_reading(job: Job, workers: int, rounds: int, *, cpu_time: bool, light: bool) -> None:
    """Epochs of reading, then an epoch from nothing."""
    augment = LIGHT if light else {}
    makers: dict[str, Callable[[], Any]] = {
        "medtrain": lambda: Medtrain(job, workers=workers, augment=augment),
        "medtrain copies": lambda: Medtrain(job, workers=workers, copies=True, augment=augment),
        "timm": lambda: open_timm(job, workers=workers, light=light),
        "torchvision": lambda: open_torchvision(job, workers=workers),
    }
    pairs = list(itertools.product(("medtrain", "medtrain copies"), ("timm", "torchvision")))
    first: dict[str, list[float]] = {}
    with ExitStack() as stack:
        runs: dict[str, Callable[[], float]] = {}
        for name, make in makers.items():
            contestant = stack.enter_context(closing(make()))
            first[name] = [read_all(contestant, job)]
            rest()
            contestant.begin()  # from now on as much is read as is taken
            runs[name] = functools.partial(read_next, contestant, job, cpu_time=cpu_time)
        times = measure(runs, rounds)
    strength = "light" if light else "own"
    report(f"{strength} augmentation, {workers} workers", times, job.images, pairs)
    if workers and not light and not cpu_time:
        report(f"the same from nothing, {workers} workers", first, job.images, pairs[:2])


def bench_training(job: Job, rounds: int, steps: int) -> None:
    """Steps of ResNet-18 with each reader, and as medtrain trains."""
    with ExitStack() as stack:
        ours = stack.enter_context(closing(Medtrain(job, workers=0)))
        readers: dict[str, tuple[Any, Trainer]] = {
            "medtrain": (ours, Trainer(fast=False)),
            "medtrain defaults": (ours, Trainer(fast=True)),
            "timm": (open_timm(job, workers=0, light=False), Trainer(fast=False)),
            "torchvision": (open_torchvision(job, workers=0), Trainer(fast=False)),
        }
        runs: dict[str, Callable[[], float]] = {
            name: functools.partial(train, reader, trainer, steps) for name, (reader, trainer) in readers.items()
        }
        times = measure(runs, rounds)
    pairs = list(itertools.product(("medtrain", "medtrain defaults"), ("timm", "torchvision")))
    heading = f"whole training steps of ResNet-18, batches of {job.batch}, 0 workers; float32 but for the defaults"
    report(heading, times, job.batch * steps, pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", default="0,2")
    parser.add_argument("--train-steps", type=int, default=4, help="steps of a round; 0 leaves training out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="for a busy machine: processor time of all processes instead, with 1 thread each, and no training",
    )
    arguments = parser.parse_args()
    if arguments.cpu_time:
        arguments.threads, arguments.train_steps = 1, 0  # threads that wait for each other use the processor, too
    torch.set_num_threads(arguments.threads)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    warnings.simplefilter("ignore")  # of the other libraries, about page-locked memory on a CPU
    images = max(2, arguments.images // arguments.batch) * arguments.batch
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder) / "images", Path(folder) / "store", images, arguments.size, arguments.batch)
        write_images(job.root, images)
        megabytes = sum(path.stat().st_size for path in job.root.rglob("*.png")) / 1e6
        print(f"{images} PNG files ({megabytes:.0f} MB) -> {job.size} x {job.size}, batches of {job.batch}")
        print(f"{arguments.rounds} rounds in turn, {arguments.threads} threads, torch {torch.__version__}")
        print("processor time" if arguments.cpu_time else "time on the wall")
        for workers in (int(text) for text in arguments.workers.split(",")):
            for light in (False, True):
                bench_reading(job, workers, arguments.rounds, cpu_time=arguments.cpu_time, light=light)
        if arguments.train_steps:
            bench_training(job, arguments.rounds, arguments.train_steps)


if __name__ == "__main__":
    main()
