"""The parity check: an exported file must compute what the network in memory computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medtrain.errors import MedtrainError
from medtrain.export.formats import Runner


@dataclass(frozen=True)
class ParityInput:
    """An input that every exported file is compared on.

    Args:
        kind: Where it came from: `random`, or `case <id>` for a patch of a real scan.
        image: Normalised patches [B, C, *P], float32.
        logits: What the network in memory makes of it, [B, K, *P], float32, on the CPU.
    """

    kind: str
    image: Tensor
    logits: Tensor


@dataclass(frozen=True)
class ParityResult:
    """How far a file is from the network in memory, on one input.

    Args:
        kind: See ParityInput.
        batch_size: Patches in the input.
        max_abs_error: Largest difference of any logit; inf when a value is not finite or the shape differs.
        allowed: The largest difference that passes: the tolerance times the largest logit, at least the tolerance.
        label_agreement: Share of voxels with the same most likely class.
    """

    kind: str
    batch_size: int
    max_abs_error: float
    allowed: float
    label_agreement: float

    @property
    def passed(self) -> bool:
        """Whether the file may be used."""
        return self.max_abs_error <= self.allowed


def make_inputs(
    network: nn.Module,
    shape: Sequence[int],
    num_classes: int,
    *,
    device: torch.device,
    samples: Sequence[tuple[str, Tensor]] = (),
) -> list[ParityInput]:
    """Draw random inputs of two batch sizes, add the real ones, and run the network in memory on each.

    Args:
        network: In eval mode, on `device`.
        shape: (C, *P) of one patch.
        num_classes: Logit channels K that the network must return.
        device: Device of the network.
        samples: (case id, normalised patch [C, *P]) of real scans.

    Raises:
        MedtrainError: The network does not return finite logits [B, K, *P].
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [("random", torch.randn((batch, *shape), generator=generator)) for batch in (1, 2)]
    inputs += [(f"case {case_id}", patch[None].to(torch.float32)) for case_id, patch in samples]
    return [ParityInput(kind, image, _reference(network, kind, image, num_classes, device)) for kind, image in inputs]


def compare(
    run: Runner, inputs: Sequence[ParityInput], *, tolerance: float, device: torch.device
) -> list[ParityResult]:
    """Run an exported file on every input and measure its distance from the network in memory.

    Args:
        run: The file, loaded.
        inputs: Made by make_inputs.
        tolerance: Allowed difference relative to the largest logit of an input (absolute below 1), > 0.
        device: Where the file runs.
    """
    with exact_float32(device):
        return [_compare_one(run(item.image), item, tolerance) for item in inputs]


def _compare_one(logits: Tensor, item: ParityInput, tolerance: float) -> ParityResult:
    allowed = tolerance * max(1.0, float(item.logits.abs().max()))
    error, agreement = float("inf"), 0.0
    if logits.shape == item.logits.shape and bool(torch.isfinite(logits).all()):
        error = float((logits - item.logits).abs().max())
        agreement = float((logits.argmax(1) == item.logits.argmax(1)).double().mean())
    return ParityResult(item.kind, len(item.image), error, allowed, agreement)


def _reference(network: nn.Module, kind: str, image: Tensor, num_classes: int, device: torch.device) -> Tensor:
    with torch.inference_mode(), exact_float32(device):
        logits = network(image.to(device))
    expected = (len(image), num_classes, *image.shape[2:])
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MedtrainError(
            f"in eval mode the network must return one tensor of logits {list(expected)}, it returned {got}"
        )
    if not bool(torch.isfinite(logits).all()):
        raise MedtrainError(
            f"the network's output is not finite (input: {kind}); these weights are of no use",
            hint="choose another checkpoint with --weights best or --weights last",
        )
    return logits.to("cpu", torch.float32)


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Keep CUDA from computing float32 with TF32, whose 10-bit mantissa would hide a faulty export.

    Only around forward passes: torch.export refuses to capture while these settings are not the default ones.
    """
    settings: list[Any] = []
    if device.type == "cuda":
        settings = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
