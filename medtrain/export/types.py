"""What goes into an export and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from medtrain.export.formats import FormatName
from medtrain.export.parity import ParityResult


class TrainedRun(Protocol):
    """What the export needs of a loaded run; `engine.restore.LoadedRun` is one."""

    @property
    def model(self) -> nn.Module:
        """The network in eval mode, in float32, with the weights to export."""

    @property
    def task(self) -> Any:
        """The task, which knows what logits mean."""

    @property
    def plan(self) -> Any:
        """What the run knows about its data: the plan of its family."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration as plain data."""

    @property
    def run_dir(self) -> Path:
        """The run's folder."""

    @property
    def step(self) -> int:
        """Optimizer steps behind the weights."""

    @property
    def weights(self) -> Literal["ema", "raw"]:
        """Whether the weights are the moving average."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of the weights."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""


@dataclass(frozen=True)
class ExportedFile:
    """One exported file and the verdict on it.

    Args:
        format: torchscript, onnx or torch_export.
        path: The file.
        size_bytes: Its size.
        sha256: Its checksum.
        tolerance: Allowed difference relative to the largest logit.
        parity: The comparison with the network in memory, one entry per input.
        producer: Versions of what wrote it, and the ONNX opset.
    """

    format: FormatName
    path: Path
    size_bytes: int
    sha256: str
    tolerance: float
    parity: tuple[ParityResult, ...]
    producer: Mapping[str, Any]

    @property
    def worst(self) -> ParityResult:
        """The comparison that used up most of what is allowed."""
        return max(self.parity, key=lambda result: result.max_abs_error / result.allowed)

    @property
    def passed(self) -> bool:
        """Whether the file computes what the network computes."""
        return all(result.passed for result in self.parity)
