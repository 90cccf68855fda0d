"""The file formats a network can be exported to: how each is written, and how it is read back for the comparison."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medtrain.errors import MedtrainError, MissingExtraError, UsageError
from medtrain.registry import closest

FormatName = Literal["torchscript", "onnx", "torch_export"]

INPUT_NAME = "image"
OUTPUT_NAME = "logits"
EMBEDDED_NAME = "medtrain.json"
"""Under this name every file carries the description of how to use it: the manifest without the list of files."""

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ONNX_LIMIT_BYTES = 2**31 - 2**24
"""A protobuf message holds less than 2 GiB; the graph itself takes a share of it."""

Runner = Callable[[Tensor], Tensor]
"""Runs an exported file: a float32 image [B, C, *P] to logits [B, K, *P] on the CPU."""


@dataclass(frozen=True)
class FileFormat:
    """One way to write a network to a file.

    Args:
        name: What `--format` is given.
        filename: The file in the export's folder.
        write: Writes the network, with an example input [2, C, *P], to a path, and embeds a description (JSON text);
            returns facts for the manifest.
        load: Reads a file back, on the given device, as a function of one batch.
        require: Raises MissingExtraError when a package is missing; called before any work.
    """

    name: FormatName
    filename: str
    write: Callable[[nn.Module, Tensor, Path, str], dict[str, Any]]
    load: Callable[[Path, torch.device], Runner]
    require: Callable[[], None]


def file_format(name: str) -> FileFormat:
    """Return a format by name.

    Raises:
        UsageError: There is no such format; the nearest name is suggested.
    """
    try:
        return FORMATS[name]
    except KeyError:
        near = closest(name, FORMATS)
        raise UsageError(
            f"unknown export format `{name}`; available: {', '.join(FORMATS)}",
            hint=f"did you mean `--format {near}`?" if near else None,
        ) from None


def _write_torchscript(network: nn.Module, example: Tensor, path: Path, description: str) -> dict[str, Any]:
    with _quiet_torchscript(), torch.no_grad():
        # the parity check compares more than trace's own check would, so that one is left out
        traced = torch.jit.trace(network, example, check_trace=False)
        torch.jit.freeze(traced).save(str(path), _extra_files={EMBEDDED_NAME: description})
    return {"torch": torch.__version__}


def _load_torchscript(path: Path, device: torch.device) -> Runner:
    with _quiet_torchscript():
        module = torch.jit.load(str(path), map_location=device)

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(image.to(device)).cpu()

    return run


@contextmanager
def _quiet_torchscript() -> Iterator[None]:
    """Silence two warnings that are no news here: TorchScript's deprecation, and size checks inside torch.nn.

    Some runtimes read nothing but TorchScript, which is why it is offered. The checks compare shapes that do not
    change, and the parity check runs two batch sizes. A TracerWarning from a model's own code still shows.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`?torch\.jit\.", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r"`?torch\.jit\.", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=r"torch\.nn\.")
        yield


def _write_torch_export(network: nn.Module, example: Tensor, path: Path, description: str) -> dict[str, Any]:
    with _explained("torch.export", network), torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=_free_batch(), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    torch.export.save(program, str(path), extra_files={EMBEDDED_NAME: description})
    return {"torch": torch.__version__}


def _load_torch_export(path: Path, device: torch.device) -> Runner:
    module = torch.export.load(str(path)).module()

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(image.to(device)).cpu()

    return run


def _write_onnx(network: nn.Module, example: Tensor, path: Path, description: str) -> dict[str, Any]:
    import onnx

    size = sum(p.numel() * p.element_size() for p in network.parameters())
    if size > _ONNX_LIMIT_BYTES:
        raise MedtrainError(
            f"the network's weights take {size / 2**30:.1f} GiB and one ONNX file holds less than 2",
            hint="use `--format torch_export` or `--format torchscript`",
        )
    with _explained("torch.onnx", network), torch.no_grad():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=_free_batch(),
        )
    assert program is not None  # None is returned only for dynamo=False
    model = program.model_proto
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        del node.metadata_props[:]  # stack traces with paths of this machine
    model.metadata_props.add(key=EMBEDDED_NAME, value=description)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return {"torch": torch.__version__, "onnx": onnx.__version__, "opset": opset, "ir_version": model.ir_version}


def _free_batch() -> tuple[dict[int, Any]]:
    """Only the batch size may vary; the patch size is part of what was learned."""
    return ({0: torch.export.Dim("batch", min=1)},)


@contextmanager
def _explained(tool: str, network: nn.Module) -> Iterator[None]:
    """Say which network a tool could not capture; these tools have no common base class for their errors."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MedtrainError(
            f"{tool} cannot capture {type(network).__name__} with a free batch size: {lines[0]}",
            hint="`--format torchscript` records what the network does with one input instead",
        ) from error


def _load_onnx(path: Path, device: torch.device) -> Runner:
    """The comparison runs on the CPU whatever the device: the common onnxruntime package has no other provider."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: image.cpu().numpy()})
        return torch.from_numpy(logits)

    return run


def _require_onnx() -> None:
    for package in ONNX_PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(package, extra="export", purpose="exporting to ONNX") from error


def _require_nothing() -> None:
    """Nothing but torch is used."""


FORMATS: Mapping[str, FileFormat] = MappingProxyType(
    {
        f.name: f
        for f in (
            FileFormat("torchscript", "model.torchscript.pt", _write_torchscript, _load_torchscript, _require_nothing),
            FileFormat("onnx", "model.onnx", _write_onnx, _load_onnx, _require_onnx),
            FileFormat("torch_export", "model.pt2", _write_torch_export, _load_torch_export, _require_nothing),
        )
    }
)
"""Every format by name."""
