"""The parity check: an exported file must compute what the network in memory computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medtrain.errors import MedtrainError
from medtrain.export.formats import Runner, as_tuple

ExpectedShape = Callable[[tuple[Tensor, ...]], tuple[int, ...]]
"""The shape of the logits that belongs to some inputs."""


@dataclass(frozen=True)
class ParityInput:
    """An input that every exported file is compared on.

    Args:
        kind: Where it came from: `random`, or `case <id>` for a patch of a real scan.
        inputs: One tensor per input of the network, in their order, with a batch axis.
        outputs: What the network in memory makes of them, the logits [B, K, ...] first, float32, on the CPU.
    """

    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class ParityResult:
    """How far a file is from the network in memory, on one input.

    Args:
        kind: See ParityInput.
        batch_size: Patches or samples in the input.
        max_abs_error: Largest difference of any output; inf when a value is not finite or the shape differs.
        allowed: The largest difference that passes: the tolerance times the largest logit, at least the tolerance.
        label_agreement: Share of voxels or samples with the same most likely class.
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
    inputs: Sequence[tuple[str, tuple[Tensor, ...]]],
    expected: ExpectedShape,
    *,
    device: torch.device,
) -> list[ParityInput]:
    """Run the network in memory on every input.

    Args:
        network: In eval mode, on `device`.
        inputs: Kind and tensors of each.
        expected: The shape of the logits that the network must return for some inputs.
        device: Device of the network.

    Raises:
        MedtrainError: The network does not return finite logits of this shape.
    """
    return [ParityInput(kind, given, _reference(network, kind, given, expected, device)) for kind, given in inputs]


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
        return [_compare_one(_outputs(run, item), item, tolerance) for item in inputs]


def _outputs(run: Runner, item: ParityInput) -> tuple[Tensor, ...]:
    try:
        return as_tuple(run(*item.inputs))
    except Exception as error:  # every runtime has errors of its own
        shapes = ", ".join(str(list(value.shape)) for value in item.inputs)
        said = next((line for line in str(error).splitlines()[::-1] if line.strip()), type(error).__name__)
        raise MedtrainError(
            f"the exported file does not run on {item.kind} input of the shapes {shapes}: {said.strip()}",
            hint="choose another format; nothing was written",
        ) from error


def _compare_one(outputs: tuple[Tensor, ...], item: ParityInput, tolerance: float) -> ParityResult:
    largest = max(float(output.abs().max()) for output in item.outputs)
    allowed = tolerance * max(1.0, largest)
    error, agreement = float("inf"), 0.0
    same = [found.shape for found in outputs] == [output.shape for output in item.outputs]
    if same and all(bool(torch.isfinite(found).all()) for found in outputs):
        pairs = list(zip(outputs, item.outputs, strict=True))
        error = max(float((found - output).abs().max()) for found, output in pairs)
        logits, reference = pairs[0]
        agreement = float((logits.argmax(1) == reference.argmax(1)).double().mean())
    return ParityResult(item.kind, len(item.outputs[0]), error, allowed, agreement)


def _reference(
    network: nn.Module, kind: str, given: tuple[Tensor, ...], expected: ExpectedShape, device: torch.device
) -> tuple[Tensor, ...]:
    with torch.inference_mode(), exact_float32(device):
        found = network(*(value.to(device) for value in given))
    shape = expected(given)
    several = isinstance(found, tuple) and all(isinstance(value, Tensor) for value in found)
    logits = found[0] if several else found
    if not isinstance(logits, Tensor) or tuple(logits.shape) != shape:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MedtrainError(
            f"in eval mode the network must return one tensor of logits {list(shape)}, it returned {got}"
        )
    if not all(bool(torch.isfinite(value).all()) for value in as_tuple(found)):
        raise MedtrainError(
            f"the network's output is not finite (input: {kind}); these weights are of no use",
            hint="choose another checkpoint with --checkpoint best or --checkpoint last",
        )
    return tuple(value.to("cpu", torch.float32) for value in as_tuple(found))


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Keep CUDA from computing float32 with TF32, whose 10-bit mantissa would hide a faulty export.

    Only around forward passes: torch.export refuses to capture while these settings are not the default ones.
    """
    if device.type != "cuda":
        yield
        return
    # the settings that `Precision` has made: torch refuses to compute with those of its older and newer interface mixed
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
