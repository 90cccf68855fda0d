"""Time medtrain's engine against a bare PyTorch loop on the same model and the same batches, in one run.

Both train a small 3-D U-Net in float32 from tensors that lie ready in memory, so the difference is the engine itself:
fetching, weighting, meters, clipping, cadence. Rounds alternate; the ratio of each pair of rounds is reported as
median, minimum and maximum. With Lightning installed (`pip install 'medtrain[bench]'`) its Trainer runs beside.

    python scripts/bench_engine.py [--rounds 7] [--steps 20] [--size 24] [--channels 8,16,32]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medtrain.engine.cadence import Cadence, parse_duration
from medtrain.engine.checkpoint import CheckpointFolder
from medtrain.engine.clock import Limit, RunClock
from medtrain.engine.distributed import Dist
from medtrain.engine.loop import Cadences, Engine
from medtrain.engine.precision import Precision
from medtrain.loggers.base import LoggerSet
from medtrain.losses.deep_supervision import DeepSupervisionLoss
from medtrain.metrics.spec import MetricSpec
from medtrain.models.stages import UNetSettings
from medtrain.models.unet import UNet
from medtrain.registry import build
from medtrain.tasks.base import StepOutput

CPU = torch.device("cpu")


class Data:
    """The same four batches over and over."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (2, 1, size, size, size)
        self.batches = [
            {
                "image": torch.randn(shape, generator=generator),
                "label": torch.randint(0, 3, (2, size, size, size), generator=generator),
                "weight": 2,
                "case_id": ["a", "b"],
            }
            for _ in range(4)
        ]
        self.batches_per_epoch = len(self.batches)

    def train_batches(self, start_batch: int, *, rank: int, world_size: int) -> Iterator[dict[str, Any]]:
        return itertools.islice(itertools.cycle(self.batches), start_batch % len(self.batches), None)

    def to_device(self, batch: dict[str, Any], device: torch.device, memory_format: Any) -> dict[str, Any]:
        return batch

    def evaluation_items(self, **_: Any) -> Iterator[dict[str, Any]]:
        return iter(())


class Task:
    """Dice and cross-entropy, as segmentation trains."""

    worst = None
    class_names = ()

    def __init__(self) -> None:
        self.loss = DeepSupervisionLoss(build("loss", {"name": "dice_ce"}, num_classes=3))

    def training_step(self, model: nn.Module, batch: dict[str, Any]) -> StepOutput:
        return StepOutput(self.loss(model(batch["image"]), batch["label"]))


def make_model(channels: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    count = len(channels)
    stages = UNetSettings(channels=channels, strides=(1,) + (2,) * (count - 1), kernel_sizes=(3,) * count)
    return UNet(spatial_dims=3, in_channels=1, num_outputs=3, settings=stages)


def run_bare(data: Data, channels: tuple[int, ...], steps: int) -> float:
    """The loop anyone would write, with the gradient clipping that the engine does too."""
    model, task = make_model(channels), Task()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = data.train_batches(0, rank=0, world_size=1)
    model.train()
    started = time.perf_counter()
    for _ in range(steps):
        batch = next(batches)
        optimizer.zero_grad(set_to_none=True)
        loss = task.loss(model(batch["image"]), batch["label"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 12.0)
        optimizer.step()
    return time.perf_counter() - started


def run_engine(data: Data, channels: tuple[int, ...], steps: int) -> float:
    model = make_model(channels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    never = Cadence(None, steps_per_epoch=data.batches_per_epoch)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            task=Task(), data=data, model=model, optimizer=optimizer,
            schedule=build("scheduler", {"name": "constant"}), precision=Precision("fp32", CPU),
            clock=RunClock(Limit(steps, None)),
            cadences=Cadences(Cadence(parse_duration("10step"), steps_per_epoch=4), never, never, never),
            checkpoints=CheckpointFolder(Path(folder)), loggers=LoggerSet({}), callbacks={},
            monitor=MetricSpec("val/dice", "max"), dist=Dist(), device=CPU, run_dir=Path(folder), seed=0,
            clip_norm=12.0,
        )  # fmt: skip
        batches = engine.batches_from_here()
        started = time.perf_counter()
        for _ in range(steps):
            engine.train_step(batches)
            if engine._due(engine.cadences.log):
                engine._log()
            engine._due(engine.cadences.evaluate), engine._due(engine.cadences.checkpoint)
        return time.perf_counter() - started


def lightning_runner() -> Callable[[Data, tuple[int, ...], int], float] | None:
    try:
        import lightning
    except ImportError:
        return None

    class Module(lightning.LightningModule):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.task = model, Task()

        def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
            loss = self.task.loss(self.model(batch["image"]), batch["label"])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    class Clock(lightning.Callback):
        seconds = 0.0

        def on_train_start(self, *_: Any) -> None:
            self.seconds = -time.perf_counter()

        def on_train_end(self, *_: Any) -> None:
            self.seconds += time.perf_counter()

    def run(data: Data, channels: tuple[int, ...], steps: int) -> float:
        clock = Clock()
        trainer = lightning.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, gradient_clip_val=12.0, callbacks=[clock], log_every_n_steps=10,
        )  # fmt: skip
        trainer.fit(Module(make_model(channels)), itertools.islice(itertools.cycle(data.batches), steps))
        return clock.seconds

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=24, help="edge of the cubic patch in voxels")
    parser.add_argument("--channels", default="8,16,32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    channels = tuple(int(c) for c in arguments.channels.split(","))
    data = Data(arguments.size)

    runners = {"bare loop": run_bare, "medtrain": run_engine}
    lightning = lightning_runner()
    if lightning is not None:
        runners["lightning"] = lightning
    times: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():
        runner(data, channels, 3)  # warm-up
    for index in range(arguments.rounds):
        names = list(runners) if index % 2 == 0 else list(runners)[::-1]
        for name in names:
            times[name].append(runners[name](data, channels, arguments.steps))

    print(f"3-D U-Net {channels}, batch 2 x {arguments.size}^3, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{arguments.rounds} rounds of {arguments.steps} steps, in turn")
    for name, values in times.items():
        per_step = [1000 * v / arguments.steps for v in values]
        ratios = [a / b for a, b in zip(values, times["bare loop"], strict=True)]
        print(
            f"{name:>10}: {statistics.median(per_step):8.2f} ms per step [{min(per_step):.2f}, {max(per_step):.2f}], "
            f"ratio to the bare loop {statistics.median(ratios):.4f} [{min(ratios):.4f}, {max(ratios):.4f}]"
        )
    if lightning is None:
        print("lightning: not installed (pip install 'medtrain[bench]')")


if __name__ == "__main__":
    main()
