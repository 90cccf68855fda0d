"""The file formats a network can be exported to: how each is written, and how it is read back for the comparison."""

from __future__ import annotations

import importlib
import inspect
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

Runner = Callable[..., tuple[Tensor, ...]]
"""Runs an exported file: one tensor per input, in their order, to one per output, on the CPU."""


@dataclass(frozen=True)
class Signature:
    """What goes into a network and what comes out of it.

    Args:
        inputs: Names of its positional arguments.
        outputs: Names of what it returns: a tensor, or a tuple of several.
        free: Per input, the axes whose length may vary, by name; the same name is the same length.
    """

    inputs: tuple[str, ...] = (INPUT_NAME,)
    outputs: tuple[str, ...] = (OUTPUT_NAME,)
    free: tuple[Mapping[int, str], ...] = (MappingProxyType({0: "batch"}),)

    def dynamic_shapes(self, *, packed: bool) -> Any:
        """The free axes as torch.export takes them.

        Args:
            packed: Whether the network takes its inputs as `*tensors`.
        """
        names = sorted({name for axes in self.free for name in axes.values()})
        dims = {name: torch.export.Dim(name, min=1) for name in names}
        shapes = tuple({axis: dims[name] for axis, name in axes.items()} for axes in self.free)
        return (shapes,) if packed else shapes


def as_tuple(found: Any) -> tuple[Tensor, ...]:
    """What a network returned, one tensor or several."""
    return (found,) if isinstance(found, Tensor) else tuple(found)


@dataclass(frozen=True)
class FileFormat:
    """One way to write a network to a file.

    Args:
        name: What `--format` is given.
        filename: The file in the export's folder.
        write: Writes the network, with example inputs of a batch of 2, to a path, and embeds a description (JSON
            text); returns facts for the manifest.
        load: Reads a file back, on the given device, as a function of its inputs.
        require: Raises MissingExtraError when a package is missing; called before any work.
    """

    name: FormatName
    filename: str
    write: Callable[[nn.Module, tuple[Tensor, ...], Path, str, Signature], dict[str, Any]]
    load: Callable[[Path, torch.device, Signature], Runner]
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


def _write_torchscript(
    network: nn.Module, example: tuple[Tensor, ...], path: Path, description: str, signature: Signature
) -> dict[str, Any]:
    with _quiet_torchscript(), torch.no_grad():
        # the parity check compares more than trace's own check would, so that one is left out
        traced = torch.jit.trace(network, example, check_trace=False)
        torch.jit.freeze(traced).save(str(path), _extra_files={EMBEDDED_NAME: description})
    return {"torch": torch.__version__}


def _load_torchscript(path: Path, device: torch.device, signature: Signature) -> Runner:
    with _quiet_torchscript():
        module = torch.jit.load(str(path), map_location=device)

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return tuple(output.cpu() for output in as_tuple(module(*(value.to(device) for value in inputs))))

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


def _write_torch_export(
    network: nn.Module, example: tuple[Tensor, ...], path: Path, description: str, signature: Signature
) -> dict[str, Any]:
    with _explained("torch.export", network), torch.no_grad():
        shapes = signature.dynamic_shapes(packed=_is_packed(network))
        program = torch.export.export(network, example, dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    torch.export.save(program, str(path), extra_files={EMBEDDED_NAME: description})
    return {"torch": torch.__version__}


def _load_torch_export(path: Path, device: torch.device, signature: Signature) -> Runner:
    module = torch.export.load(str(path)).module()

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return tuple(output.cpu() for output in as_tuple(module(*(value.to(device) for value in inputs))))

    return run


def _write_onnx(
    network: nn.Module, example: tuple[Tensor, ...], path: Path, description: str, signature: Signature
) -> dict[str, Any]:
    import onnx

    size = sum(p.numel() * p.element_size() for p in network.parameters())
    if size > _ONNX_LIMIT_BYTES:
        raise MedtrainError(
            f"the network's weights take {size / 2**30:.1f} GiB and one ONNX file holds less than 2",
            hint="use `--format torch_export` or `--format torchscript`",
        )
    with _explained("torch.onnx", network), torch.no_grad(), warnings.catch_warnings():
        # inputs that share the free batch size share its name: that is meant
        warnings.filterwarnings("ignore", message=r"# The axis name: \w+ will not be used", category=UserWarning)
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            verbose=False,
            input_names=list(signature.inputs),
            output_names=list(signature.outputs),
            dynamic_shapes=signature.dynamic_shapes(packed=_is_packed(network)),
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


def inner_network(network: nn.Module) -> nn.Module:
    """The network that a user knows: without what an export puts around it."""
    inner = getattr(network, "exported", None)
    return inner if isinstance(inner, nn.Module) else network


def _is_packed(network: nn.Module) -> bool:
    """Whether a network takes its inputs as `*tensors`."""
    parameters = inspect.signature(network.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)


@contextmanager
def _explained(tool: str, network: nn.Module) -> Iterator[None]:
    """Say which network a tool could not capture; these tools have no common base class for their errors."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise MedtrainError(
            f"{tool} cannot capture {type(inner_network(network)).__name__} with a free batch size: {lines[0]}",
            hint="`--format torchscript` records what the network does with one input instead",
        ) from error


def _load_onnx(path: Path, device: torch.device, signature: Signature) -> Runner:
    """The comparison runs on the CPU whatever the device: the common onnxruntime package has no other provider."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    taken = {entry.name for entry in session.get_inputs()}  # the exporter drops what the network does not look at

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        named = zip(signature.inputs, inputs, strict=True)
        fed = {name: value.cpu().numpy() for name, value in named if name in taken}
        return tuple(torch.from_numpy(output) for output in session.run(list(signature.outputs), fed))

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
