"""Sliding-window inference beside MONAI and nnU-Net: time beyond the network's own forward, and memory.

    python scripts/bench_inference.py --classes 3 14 60
    python scripts/bench_inference.py --peers-python OTHER/bin/python   # where nnunetv2 is in an environment of its own
    python scripts/bench_inference.py --scale                           # a 512 x 512 x 700 scan through the Predictor

The network is one multiplication and one addition per voxel and class, so that nearly all of the time is that of
cutting windows, blending and deciding. MONAI and nnU-Net end with logits (nnU-Net's in half precision), medtrain with
the label map; "MONAI, argmax" goes as far as medtrain. Every contestant is a process of its own and they work in turn.
What is made is checked against the network applied to the whole image at once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import side_by_side
import torch
from side_by_side import Contestant, serve, spread, start

SHAPE = (160, 256, 256)
PATCH = (96, 96, 96)
OVERLAP = 0.5
CONTESTANTS = ("medtrain", "MONAI", "MONAI, argmax", "nnU-Net")


class Quantizer(torch.nn.Module):
    """Class k where the intensity is nearest to k: a map per voxel, so blending changes nothing. Counts its time."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        centres = torch.arange(classes, dtype=torch.float32)
        self.register_buffer("slope", centres.view(1, -1, 1, 1, 1))
        self.register_buffer("offset", (-centres.square() / 2).view(1, -1, 1, 1, 1))
        self.cpu = self.wall = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wall, cpu = time.perf_counter(), time.process_time()
        out = torch.addcmul(self.offset, x, self.slope)
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        return out


def make_image(classes: int) -> torch.Tensor:
    """[1, D, H, W] with smooth intensities over all classes."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, *(n // 16 for n in SHAPE), generator=generator)
    return torch.nn.functional.interpolate(coarse, SHAPE, mode="trilinear")[0] * classes - 0.5


def medtrain_case(
    network: torch.nn.Module, image: torch.Tensor, classes: int, max_memory: str | None = None
) -> Callable[[], np.ndarray]:
    """To the label map on the scan's grid, which is the network's here."""
    from medtrain.data.geometry import CaseGeometry
    from medtrain.data.io.nifti import SourceGrid
    from medtrain.inference.room import parse_size
    from medtrain.inference.whole_case import predict_label

    affine = tuple(tuple(float(i == j) for j in range(4)) for i in range(4))
    grid = SourceGrid(affine, (SHAPE[2], SHAPE[1], SHAPE[0]))
    geometry = CaseGeometry.between(grid, tuple((0, n) for n in SHAPE), None)  # type: ignore[arg-type]
    limit = None if max_memory is None else parse_size(max_memory)
    return lambda: predict_label(
        [network], [image], geometry, patch_size=PATCH, regions=None, overlap=OVERLAP, max_memory=limit
    )


def monai_case(network: torch.nn.Module, image: torch.Tensor, classes: int, *, decide: bool) -> Callable[[], Any]:
    """To the logits, or to the label map."""
    from monai.inferers import sliding_window_inference

    def work() -> Any:
        logits = sliding_window_inference(image[None], PATCH, 1, network, overlap=OVERLAP, mode="gaussian")
        return logits[0].argmax(0) if decide else logits[0]

    return work


def nnunet_case(network: torch.nn.Module, image: torch.Tensor, classes: int) -> Callable[[], torch.Tensor]:
    """To the logits, float16."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=1 - OVERLAP,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.network = network
    predictor.configuration_manager = SimpleNamespace(patch_size=PATCH)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=classes)
    predictor.allowed_mirroring_axes = None
    return lambda: predictor.predict_sliding_window_return_logits(image)


def child(name: str, classes: int, threads: int, max_memory: str | None) -> None:
    """A contestant: checks what it makes, then works on demand."""
    torch.set_num_threads(threads)
    image = make_image(classes)
    network = Quantizer(classes).eval()
    expected = image[0].round().clamp(0, classes - 1).to(torch.uint8)
    case = {
        "medtrain": lambda *a: medtrain_case(*a, max_memory=max_memory),
        "MONAI": lambda *a: monai_case(*a, decide=False),
        "MONAI, argmax": lambda *a: monai_case(*a, decide=True),
        "nnU-Net": nnunet_case,
    }[name](network, image, classes)

    def work(request: object) -> dict[str, float]:
        network.cpu = network.wall = 0.0
        before = side_by_side.memory()["rss"]
        side_by_side.forget_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            made = case()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        above = side_by_side.memory()["peak"] - before
        label = torch.as_tensor(made) if made.ndim == 3 else made.argmax(0)
        agree = float((label == expected).float().mean())
        return {"beyond": wall - network.wall, "beyond_cpu": cpu - network.cpu, "above": above, "agree": agree}

    work(None)  # the first call loads what is imported late
    serve(work)


def compare(classes: int, arguments: argparse.Namespace) -> None:
    """Let all work in turn and print the table."""
    contestants: list[Contestant] = []
    for name in arguments.only:
        python = arguments.peers_python if name == "nnU-Net" else sys.executable
        command = [python, __file__, "--child", name, "--classes", str(classes), "--threads", str(arguments.threads)]
        command += ["--max-memory", arguments.max_memory] if arguments.max_memory else []
        contestant = start(name, command, threads=arguments.threads)
        if contestant is not None:
            contestants.append(contestant)
    results: dict[str, list[dict[str, Any]]] = {contestant.title: [] for contestant in contestants}
    for _ in range(arguments.rounds):
        for contestant in contestants:
            results[contestant.title].append(contestant.ask(None))
    size = " x ".join(map(str, SHAPE))
    print(
        f"\n{classes} classes, {size}, patch {' x '.join(map(str, PATCH))}, overlap {OVERLAP}, {arguments.threads} "
        f"thread(s), {arguments.rounds} rounds"
    )
    print(f"{'':15}{'s beyond the network':>32}{'CPU s':>32}{'ratio':>8}{'MB above start':>16}{'agreement':>11}")
    ours = 0.0
    for contestant in contestants:
        rounds = results[contestant.title]
        wall, cpu = [r["beyond"] for r in rounds], [r["beyond_cpu"] for r in rounds]
        ours = ours or statistics.median(cpu)
        numbers = f"{statistics.median(cpu) / ours:8.2f}{statistics.median([r['above'] for r in rounds]):16.0f}"
        print(f"{contestant.title:15}{spread(wall):>32}{spread(cpu):>32}{numbers}{rounds[0]['agree']:11.5f}")
        contestant.close()


def scale_child(folder: Path, classes: int, threads: int, max_memory: str | None) -> None:
    """A scan through the Predictor: read, prepare, predict, write."""
    from medtrain.data.plan import ChannelNormalization, Plan
    from medtrain.engine.precision import Precision
    from medtrain.inference.predictor import Predictor
    from medtrain.inference.sliding_window import SlidingWindow
    from medtrain.losses.dice import DiceCELoss
    from medtrain.tasks.segmentation import Segmentation

    torch.set_num_threads(threads)
    names = ("background", *(f"organ_{index}" for index in range(1, classes)))
    plan = Plan(
        spatial_dims=3,
        spacing=(1.25, 0.9, 0.9),
        patch_size=PATCH,
        batch_size=2,
        channels=(4,),
        strides=((1, 1, 1),),
        kernel_sizes=((3, 3, 3),),
        normalization=(ChannelNormalization("ct", mean=-100.0, std=1000 / classes, lower=-1000, upper=1000),),
        in_channels=1,
        num_classes=classes,
        class_names=names,
        label_values=tuple(range(classes)),
        ignore_index=None,
        channel_names=("CT",),
        median_shape=(500, 400, 400),
    )
    device = torch.device("cpu")
    window = SlidingWindow(mirror=False, max_memory=max_memory)
    task = Segmentation(loss=DiceCELoss(num_classes=classes), inference=window, plan=plan, device=device)
    run: Any = SimpleNamespace(
        model=Quantizer(classes).eval(),
        task=task,
        plan=plan,
        config={},
        run_dir=folder,
        step=0,
        weights="raw",
        device=device,
        precision=Precision("fp32", device),
    )
    predictor = Predictor(run)

    def work(request: object) -> dict[str, Any]:
        before = side_by_side.memory()["rss"]
        side_by_side.forget_peak()
        reports = predictor.predict_folder(folder / "scans", folder / "out", overwrite=True)
        assert all(report.ok for report in reports), reports
        return {"above": side_by_side.memory()["peak"] - before, "seconds": [r.seconds for r in reports]}

    serve(work)


def scale(arguments: argparse.Namespace) -> None:
    """Predict large scans end to end and print the peak memory."""
    import nibabel as nib

    shape = tuple(arguments.shape)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "scans").mkdir()
        image, _ = side_by_side.make_ct_case(0, shape)
        for number in range(arguments.scans):
            nib.save(
                nib.Nifti1Image(image.transpose(2, 1, 0), np.diag([0.7, 0.7, 1.0, 1.0])),
                folder / "scans" / f"scan_{number}.nii.gz",
            )
        megabytes = image.nbytes / 1e6
        del image
        for classes in arguments.classes:
            command = [sys.executable, __file__, "--scale-child", str(folder), "--classes", str(classes)]
            command += ["--threads", str(arguments.threads)]
            command += ["--max-memory", arguments.max_memory] if arguments.max_memory else []
            contestant = Contestant("medtrain", command, threads=arguments.threads)
            result = contestant.ask(None)
            size = f"{' x '.join(map(str, shape))} int16, {megabytes:.0f} MB each"
            setting = f"inference.max_memory={arguments.max_memory or 'null'}"
            print(f"{arguments.scans} scan(s) of {size}, {classes} classes, {setting}:", end=" ")
            print(f"peak {result['above']:.0f} MB above start, {result['wall']:.1f} s wall, {result['cpu']:.1f} s CPU")
            contestant.close()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 14])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that has nnunetv2")
    parser.add_argument("--scale", action="store_true", help="large scans through the Predictor")
    parser.add_argument("--shape", type=int, nargs=3, default=[700, 512, 512], help="of the large scans: D H W")
    parser.add_argument("--scans", type=int, default=1, help="how many of them")
    parser.add_argument("--max-memory", help="inference.max_memory of medtrain, such as 1GiB")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--scale-child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.classes[0], arguments.threads, arguments.max_memory)
    elif arguments.scale_child:
        scale_child(
            arguments.scale_child,
            arguments.classes[0],
            arguments.threads,
            arguments.max_memory,
        )
    elif arguments.scale:
        scale(arguments)
    else:
        for classes in arguments.classes:
            compare(classes, arguments)


if __name__ == "__main__":
    main()
