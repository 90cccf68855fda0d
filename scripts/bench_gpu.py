"""Training steps of the 3-D U-Net on a GPU beside nnU-Net's: step time, samples per second, idle share, peak memory.

Both train at nnU-Net's plan for MSD Liver (patch 128 x 128 x 128, batch 2) or Hippocampus (40 x 56 x 40, batch 9), with
deep supervision, Dice and cross-entropy, SGD and clipping, on batches that lie ready in page-locked memory; medtrain
through its engine with its moving average, nnU-Net through its trainer's own network, loss and `train_step`. Every
contestant is a process of its own; they work in turn, and the ratio to medtrain's first row is taken within a round.

    python scripts/bench_gpu.py [liver hippocampus] [--peers-python PYTHON] [--rounds 5] [--steps 20]
    python scripts/bench_gpu.py --device cpu --smoke    # tiny sizes: that it works

The idle share is what no kernel runs of the time between the first and the last kernel of three profiled steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from side_by_side import Contestant, memory, serve, spread, start

OUTPUTS = 3
WARM_UP = 5
PROFILED = 3


@dataclass(frozen=True)
class Job:
    """nnU-Net's plan: patch (D, H, W), batch size, channels and strides by stage."""

    patch: tuple[int, int, int]
    batch: int
    channels: tuple[int, ...]
    strides: tuple[tuple[int, int, int], ...]


HALVE = (2, 2, 2)
JOBS = {
    "liver": Job((128, 128, 128), 2, (32, 64, 128, 256, 320, 320), ((1, 1, 1), *(HALVE,) * 5)),
    "hippocampus": Job((40, 56, 40), 9, (32, 64, 128, 256), ((1, 1, 1), *(HALVE,) * 3)),
    "smoke": Job((16, 16, 16), 2, (4, 8, 8), ((1, 1, 1), *(HALVE,) * 2)),
}


@dataclass(frozen=True)
class Variant:
    """How a contestant computes."""

    precision: str
    channels_last: bool = False
    compile: bool = False

    def __str__(self) -> str:
        extras = [name for name in ("channels_last", "compile") if getattr(self, name)]
        return " ".join([self.precision, *extras])


def random_batches(job: Job, *, pin: bool, count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images [B, 1, *P] and labels [B, *P], the same for every contestant."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        image = torch.randn(job.batch, 1, *job.patch, generator=generator)
        label = torch.randint(0, OUTPUTS, (job.batch, *job.patch), generator=generator, dtype=torch.int16)
        batches.append((image.pin_memory(), label.pin_memory()) if pin else (image, label))
    return batches


class Data:
    """Ready batches over and over, copied as medtrain's data copy them."""

    def __init__(self, job: Job, *, pin: bool) -> None:
        self._batches = random_batches(job, pin=pin)
        self._size = job.batch
        self.batches_per_epoch = len(self._batches)

    def train_batches(self, start_batch: int, *, rank: int, world_size: int) -> Iterator[dict[str, Any]]:
        while True:
            for image, label in self._batches:
                yield {"image": image, "label": label, "weight": self._size}

    def to_device(self, batch: dict[str, Any], device: torch.device, memory_format: Any) -> dict[str, Any]:
        moved = {name: batch[name].to(device, non_blocking=True) for name in ("image", "label")}
        if memory_format is not None:
            moved["image"] = moved["image"].contiguous(memory_format=memory_format)
        return {**batch, **moved}


class Task:
    """The training step of a segmentation."""

    def __init__(self, device: torch.device) -> None:
        from medtrain.losses.deep_supervision import DeepSupervisionLoss
        from medtrain.registry import build

        self.loss = DeepSupervisionLoss(
            build("loss", {"name": "dice_ce"}, num_classes=OUTPUTS, regions=None).to(device)
        )

    def batch_weight(self, batch: dict[str, Any]) -> float:
        return float(batch["weight"])

    def training_step(self, model: torch.nn.Module, batch: dict[str, Any]) -> Any:
        from medtrain.tasks.base import StepOutput

        return StepOutput(self.loss(model(batch["image"]), batch["label"]))


def medtrain_steps(job: Job, variant: Variant, device: torch.device) -> Callable[[], object]:
    """A function that makes one step through medtrain's engine."""
    from medtrain.engine.cadence import Cadence, Cadences
    from medtrain.engine.checkpoint import CheckpointFolder
    from medtrain.engine.clock import Limit, RunClock
    from medtrain.engine.distributed import Dist
    from medtrain.engine.ema import EMA
    from medtrain.engine.loop import Engine
    from medtrain.engine.precision import Precision
    from medtrain.loggers.base import LoggerSet
    from medtrain.metrics.spec import MetricSpec
    from medtrain.registry import build

    torch.backends.cudnn.benchmark = device.type == "cuda"
    torch.manual_seed(0)
    settings = {"name": "unet", "channels": job.channels, "strides": job.strides, "norm": "instance",
                "kernel_sizes": ((3, 3, 3),) * len(job.channels), "deep_supervision": True}  # fmt: skip
    model = build("model", settings, spatial_dims=3, in_channels=1, num_outputs=OUTPUTS).to(device)
    memory_format = torch.channels_last_3d if variant.channels_last else None
    if memory_format is not None:
        model = model.to(memory_format=memory_format)
    ema = EMA(model, decay=0.999)
    optimizer = build("optimizer", {"name": "sgd"}, model=model)
    if variant.compile:
        model.compile()
    never = Cadence(None, steps_per_epoch=1)
    folder = Path(tempfile.mkdtemp())
    engine = Engine(
        task=Task(device), data=Data(job, pin=device.type == "cuda"), model=model, optimizer=optimizer,
        schedule=build("scheduler", {"name": "constant"}), precision=Precision(variant.precision, device),
        clock=RunClock(Limit(10**6, None)), cadences=Cadences(never, never, never, never),
        checkpoints=CheckpointFolder(folder), loggers=LoggerSet({}), callbacks={},
        monitor=MetricSpec("val/dice", "max"), dist=Dist(), device=device, run_dir=folder, seed=0, ema=ema,
        clip_norm=12.0, memory_format=memory_format,
    )  # fmt: skip
    batches = engine.batches_from_here()
    return lambda: engine.train_step(batches)


def nnunet_steps(job: Job, variant: Variant, device: torch.device) -> Callable[[], object]:
    """A function that makes one step as nnU-Net's trainer does: fp16 on a GPU, whatever the variant says."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    os.environ["nnUNet_compile"] = str(variant.compile)  # noqa: SIM112 - its name
    torch.backends.cudnn.benchmark = device.type == "cuda"
    torch.manual_seed(0)
    stages = len(job.channels)
    network = get_network_from_plans(
        "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        {
            "n_stages": stages, "features_per_stage": list(job.channels), "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages, "strides": [list(stride) for stride in job.strides],
            "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        },
        ["conv_op", "norm_op", "dropout_op", "nonlin"], 1, OUTPUTS, deep_supervision=True,
    ).to(device)  # fmt: skip
    trainer: Any = object.__new__(nnUNetTrainer)  # its set-up wants a data set; a step needs this much of it
    trainer.device, trainer.is_ddp, trainer.enable_deep_supervision = device, False, True
    trainer.label_manager = SimpleNamespace(has_regions=False, ignore_label=None)
    trainer.configuration_manager = SimpleNamespace(batch_dice=False, pool_op_kernel_sizes=job.strides)
    trainer.network = torch.compile(network) if trainer._do_i_compile() else network
    trainer.loss = trainer._build_loss()
    trainer.optimizer = torch.optim.SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    trainer.grad_scaler = torch.amp.GradScaler("cuda") if device.type == "cuda" else None
    scales = trainer._get_deep_supervision_scales()
    batches = []
    for image, label in random_batches(job, pin=device.type == "cuda"):
        targets = [label[(slice(None), None, *(slice(None, None, round(1 / s)) for s in scale))] for scale in scales]
        batches.append({"data": image, "target": [part.contiguous() for part in targets]})
    turn = iter(range(10**9))
    return lambda: trainer.train_step(batches[next(turn) % len(batches)])


CONTESTANTS = {"medtrain": medtrain_steps, "nnU-Net": nnunet_steps}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def idle_share(step: Callable[[], object], device: torch.device) -> float | None:
    """Share of the time of some steps in which no kernel runs; None without a GPU."""
    if device.type != "cuda":
        return None
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(PROFILED):
            step()
        wait(device)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == DeviceType.CUDA
        and event.time_range.end > event.time_range.start
        and not event.is_user_annotation  # a named range, which covers what is idle within it
    )
    return gaps(spans)


def gaps(spans: Sequence[tuple[float, float]]) -> float | None:
    """Share of the time from the first start to the last end that no span covers; None without spans."""
    if not spans:
        return None
    busy, until = 0.0, spans[0][0]
    for begin, end in sorted(spans):
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    first = min(begin for begin, _ in spans)
    return 1 - busy / (until - first)


def work(name: str, job: Job, variant: Variant, device: torch.device) -> None:
    """A contestant's process: the mean step of as many as it is asked for, and the most memory."""
    step = CONTESTANTS[name](job, variant, device)
    for _ in range(WARM_UP):
        step()
    wait(device)
    share = idle_share(step, device)
    torch.cuda.empty_cache()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def measure(request: dict[str, int]) -> dict[str, Any]:
        step()  # takes the memory again
        wait(device)
        started = time.perf_counter()
        for _ in range(request["steps"]):
            step()
        wait(device)
        seconds = (time.perf_counter() - started) / request["steps"]
        on_gpu = device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else memory()["peak"] / 1e3
        torch.cuda.empty_cache()  # for the next one, who is on the same GPU
        return {"seconds": seconds, "gib": peak, "idle": share}

    name_of = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    serve(measure, device=name_of, torch=torch.__version__, cuda=torch.version.cuda)


def rows(device: str, *, smoke: bool) -> list[tuple[str, Variant]]:
    """What runs beside each other; medtrain's default on a GPU first, to which all else is compared."""
    if smoke:
        return [("medtrain", Variant("fp32")), ("medtrain", Variant("bf16", True)), ("nnU-Net", Variant("fp32"))]
    precisions = ("fp32", "bf16") if device == "cpu" else ("bf16", "fp16", "tf32", "fp32")
    ours = [Variant(precision) for precision in precisions]
    ours += [Variant("bf16", channels_last=True), Variant("bf16", compile=True), Variant("bf16", True, True)]
    theirs = [Variant("fp16"), Variant("fp16", compile=True)] if device == "cuda" else [Variant("fp32")]
    return [("medtrain", variant) for variant in ours] + [("nnU-Net", variant) for variant in theirs]


def compare(name: str, arguments: argparse.Namespace) -> None:
    """Let everyone make steps of a job in turn, and print a line for each."""
    started: list[tuple[str, Variant, Contestant]] = []
    for who, variant in rows(arguments.device, smoke=arguments.smoke):
        python = arguments.peers_python if who == "nnU-Net" else sys.executable
        command = [python, __file__, name, "--device", arguments.device, "--work", who, variant.precision,
                   str(int(variant.channels_last)), str(int(variant.compile))]  # fmt: skip
        contestant = start(f"{who} {variant}", command, threads=arguments.threads)
        if contestant is not None:
            started.append((who, variant, contestant))
    job = JOBS[name]
    facts = started[0][2].ready
    size = " x ".join(map(str, job.patch))
    print(f"\n{name}: patch {size}, batch {job.batch}; {facts['device']}, torch {facts['torch']}, CUDA {facts['cuda']}")
    taken: list[list[dict[str, Any]]] = [[] for _ in started]
    for _ in range(arguments.rounds):
        for results, (_, _, contestant) in zip(taken, started, strict=True):
            results.append(contestant.ask({"steps": arguments.steps}))
    print(f"{'':36s}{'ms per step (range)':>32s}{'samples/s':>11s}{'time / first':>14s}{'idle':>7s}{'GiB':>7s}")
    for results, (who, variant, contestant) in zip(taken, started, strict=True):
        seconds = [result["seconds"] for result in results]
        ratio = statistics.median(s / first["seconds"] for s, first in zip(seconds, taken[0], strict=True))
        idle = "-" if results[0]["idle"] is None else f"{100 * results[0]['idle']:.1f} %"
        print(
            f"{who + ' ' + str(variant):36s}{spread([1e3 * s for s in seconds]):>32s}"
            f"{job.batch / statistics.median(seconds):11.1f}{ratio:14.2f}{idle:>7s}{results[-1]['gib']:7.2f}"
        )
        contestant.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", default=["liver", "hippocampus"], help=", ".join(JOBS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="per round")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that has nnunetv2")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and few steps: that it works")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        who, precision, channels_last, compiled = arguments.work
        variant = Variant(precision, channels_last == "1", compiled == "1")
        work(who, JOBS[arguments.jobs[0]], variant, torch.device(arguments.device))
        return
    if arguments.smoke:
        arguments.jobs, arguments.rounds, arguments.steps = ["smoke"], 2, 2
    unknown = [name for name in arguments.jobs if name not in JOBS]
    if unknown:
        parser.error(f"no job {unknown[0]}; there are {', '.join(JOBS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; `--device cpu --smoke` shows that the script works")
    for name in arguments.jobs:
        compare(name, arguments)


if __name__ == "__main__":
    main()
