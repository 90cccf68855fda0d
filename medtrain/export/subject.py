"""What is exported of a run: a network with named inputs and outputs, what to compare on, and how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from medtrain.export.formats import Signature
from medtrain.export.manifest import SCRIPT_PACKAGES, describe
from medtrain.export.parity import ExpectedShape
from medtrain.export.types import TrainedRun

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Script:
    """A program that lies beside an ONNX file and uses it without medtrain.

    Args:
        resource: Its file in this package.
        usage: What to type.
        needs: Packages beside Python.
    """

    resource: str
    usage: str
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """A network as it is exported; one function per family of data makes it.

    Args:
        network: Takes its inputs by position and returns a tensor, or a tuple of several.
        signature: Names of inputs and outputs, free axes.
        example: Inputs of a batch of 2, for formats that record what the network does.
        inputs: Kind and tensors of what every file is compared on.
        expected: The shape of the logits for some inputs.
        description: The manifest without the list of files.
        script: Put beside an ONNX file, or None.
    """

    network: nn.Module
    signature: Signature
    example: Inputs
    inputs: Sequence[tuple[str, Inputs]]
    expected: ExpectedShape
    description: dict[str, Any] = field(repr=False)
    script: Script | None


SEGMENTATION_SCRIPT = Script(
    "standalone.py", "python predict.py SCAN.nii.gz [SCAN.nii.gz ...] OUT.nii.gz", SCRIPT_PACKAGES
)


def segmentation_subject(loaded: TrainedRun, network: nn.Module, samples: Sequence[tuple[str, Tensor]]) -> Subject:
    """A network from normalised patches [B, C, *P] to logits [B, K, *P].

    Args:
        loaded: The run.
        network: Its network as it is exported.
        samples: (case id, normalised patch [C, *P]) of real scans; the channels of a first stage may be missing.
    """
    plan = loaded.plan
    generator = torch.Generator().manual_seed(0)
    shape = (plan.input_channels, *plan.patch_size)
    inputs: list[tuple[str, Inputs]] = [
        ("random", (torch.randn((batch, *shape), generator=generator),)) for batch in (1, 2)
    ]
    for case_id, patch in samples:
        found = torch.randint(0, 2, (shape[0] - len(patch), *plan.patch_size), generator=generator)
        inputs.append((f"case {case_id}", (torch.cat([patch, found]).to(torch.float32)[None],)))
    return Subject(
        network=network,
        signature=Signature(),
        example=inputs[1][1],
        inputs=inputs,
        expected=lambda given: (len(given[0]), plan.num_outputs, *given[0].shape[2:]),
        description=describe(loaded),
        script=SEGMENTATION_SCRIPT,
    )
