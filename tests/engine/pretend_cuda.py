"""A GPU that is not there: tensors that say they are on `cuda` and are computed by the CPU, with their values.

Inside `PretendCuda`, whatever asks for device `cuda` gets a `CudaTensor`. It has real values, so that whole trainings
run to their end; and it is as strict as a GPU: an operation of tensors of two devices fails, so does one that a CPU's
generator is given to, and its values are read by way of `.cpu()` or `.item()` alone. These waits are counted.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
_aten = torch.ops.aten

# of these, CUDA takes some arguments from the CPU: indices, and what is copied
_ACROSS = {_aten.copy_, _aten._to_copy, _aten._copy_from}
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._unsafe_index, _aten._index_put_impl_}
_WAITING = {_aten._local_scalar_dense, _aten.nonzero, _aten.equal, _aten._unique2, _aten.masked_select}


# what autocast on CUDA computes in half precision, and in float32; by the names of Python's functions
_HALF = {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "matmul",
    "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "addbmm", "baddbmm", "einsum", "prelu",
    "scaled_dot_product_attention",
}  # fmt: skip
_FULL = {
    "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "pow", "__pow__", "__rpow__", "softplus",
    "layer_norm", "group_norm", "cosine_similarity", "nll_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss",
    "mse_loss", "binary_cross_entropy_with_logits", "cdist", "logsumexp", "prod", "softmax", "log_softmax", "cumsum",
    "cumprod", "sum", "norm",
}  # fmt: skip


class CudaTensor(Tensor):
    """A tensor that says it is on a GPU.

    It stands for a tensor `host` in main memory; torch itself sees `shadow`, which has its shape and no values.
    """

    host: Tensor
    shadow: Tensor

    @staticmethod
    def wrap(real: Tensor, shadow: Tensor | None = None) -> CudaTensor:
        if shadow is None:
            if real.storage_offset() or real.untyped_storage().nbytes() > real.numel() * real.element_size():
                real = real.clone()
            shadow = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="meta")
        made: CudaTensor = Tensor._make_subclass(CudaTensor, shadow, False, device_for_backend_keys=DEVICE)
        made.host, made.shadow = real, shadow
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def tolist(self) -> Any:  # torch's own refuses subclasses
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:  # a file that was saved on a GPU, read with map_location="cpu"
        return self.detach().cpu().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert PretendCuda.current is not None, "the pretended GPU is switched off"
        return PretendCuda.current.run(func, args, kwargs or {})

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to and isinstance(args[0], CudaTensor):
            args, kwargs = _without_cuda(args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if func is Tensor.data.__set__:  # type: ignore[attr-defined]
            args[0].host, args[0].shadow = args[1].host, args[1].shadow
        return result


def _is_cuda(value: Any) -> bool:
    return isinstance(value, str | torch.device) and torch.device(value).type == "cuda"


def _without_cuda(args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Arguments of `Tensor.to` without the device, where it is there already."""
    args = tuple(value for value in args if not _is_cuda(value))
    kwargs = {name: value for name, value in kwargs.items() if name != "device" or not _is_cuda(value)}
    return args, kwargs if len(args) > 1 or kwargs else {"dtype": args[0].dtype}


def _autocast(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Arguments as autocast hands them on; torch's own looks for a GPU in C++."""
    name = getattr(func, "__name__", "")
    if not torch.is_autocast_enabled("cuda") or name not in _HALF | _FULL | {"binary_cross_entropy"}:
        return args, kwargs
    if name == "binary_cross_entropy":
        raise RuntimeError("torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast")
    dtype = torch.get_autocast_dtype("cuda") if name in _HALF else torch.float32

    def cast(value: Any) -> Any:
        # float64 is left alone
        eligible = isinstance(value, CudaTensor) and value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if eligible and value.dtype != dtype else value

    return tree_map(cast, (tuple(args), dict(kwargs)))


class _Explicit(TorchFunctionMode):
    """Notes when the device `meta` is asked for: to torch itself a CudaTensor is on it as well."""

    meta = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _is_cuda(kwargs.get("device")):
            device = kwargs["device"]  # torch would copy it there in C++
            return func(*args, **{name: value for name, value in kwargs.items() if name != "device"}).to(device)
        args, kwargs = _autocast(func, args, kwargs)
        asked = [kwargs.get("device"), *args] if func in (Tensor.to,) else [kwargs.get("device")]
        before = self.meta
        self.meta = before or any(isinstance(value, str | torch.device) and str(value) == "meta" for value in asked)
        try:
            return func(*args, **kwargs)
        finally:
            self.meta = before


class PretendCuda(TorchDispatchMode):
    """Computes what is asked of device `cuda`.

    Args:
        waits: Counts, by place in medtrain, how often the host had to wait for the device.
    """

    current: ClassVar[PretendCuda | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.operations = 0
        self._explicit = _Explicit()

    def __enter__(self) -> PretendCuda:
        PretendCuda.current = self
        self._explicit.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        PretendCuda.current = None
        super().__exit__(*reason)
        self._explicit.__exit__(*reason)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        on_gpu = [tensor for tensor in tensors if isinstance(tensor, CudaTensor)]
        if self._explicit.meta:  # shapes without values
            return func(*tree_map(_shadow, args), **tree_map(_shadow, kwargs))
        wanted = kwargs.get("device")
        wanted = None if wanted is None else torch.device(wanted).type
        if wanted == "meta":  # made by torch itself, for a CudaTensor
            wanted, kwargs = "cuda", {**kwargs, "device": DEVICE}
        to_gpu = wanted == "cuda" or (wanted is None and bool(on_gpu))
        packet = func.overloadpacket
        if on_gpu:
            self.operations += 1
            _check_devices(func, args, tensors)
        if to_gpu and any(isinstance(leaf, torch.Generator) for leaf in leaves):
            raise RuntimeError(f"{func}: Expected a 'cuda' device type for generator but found 'cpu'")
        self._count_waits(packet, args, kwargs, on_gpu, wanted)
        pinned = bool(kwargs.get("pin_memory")) or packet is _aten._pin_memory
        if packet is _aten.is_pinned:
            return getattr(args[0], "pinned", False)
        result = self._compute(func, packet, args, kwargs, to_gpu)
        if pinned:
            result.pinned = True
        return result

    def _compute(self, func: Any, packet: Any, args: Any, kwargs: dict[str, Any], to_gpu: bool) -> Any:
        if packet is _aten._pin_memory:
            return args[0].clone()
        kwargs = dict(kwargs)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        real_args, real_kwargs = tree_map(_real, (args, kwargs))
        result = func(*real_args, **real_kwargs)
        returns = func._schema.returns
        if any(value.alias_info is not None and value.alias_info.is_write for value in returns):
            return kwargs["out"] if "out" in kwargs else args[0]
        if not to_gpu:
            return result
        # of a view, what it is a view of
        aliased = [place for place, value in enumerate(func._schema.arguments) if value.alias_info is not None]
        is_view = any(value.alias_info is not None for value in returns) and bool(aliased)
        source = args[aliased[0]] if is_view and isinstance(args[aliased[0]], CudaTensor) else None

        def wrap(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            shadow = None
            if source is not None and value.untyped_storage()._cdata == source.host.untyped_storage()._cdata:
                shadow = source.shadow
                if value.dtype != shadow.dtype:  # view_as_real and the like
                    shadow = torch.view_as_real(shadow) if shadow.is_complex() else torch.view_as_complex(shadow)
                shadow = shadow.as_strided(value.shape, value.stride(), value.storage_offset())
            return CudaTensor.wrap(value, shadow)

        return tree_map(wrap, result)

    def _count_waits(
        self, packet: Any, args: Any, kwargs: dict[str, Any], on_gpu: list[CudaTensor], wanted: str | None
    ) -> None:
        blocking = packet in _WAITING and bool(on_gpu)
        if packet is _aten._to_copy and wanted is not None and bool(on_gpu) != (wanted == "cuda"):
            blocking = not kwargs.get("non_blocking")  # either way torch waits for what the device has to do
        if packet is _aten.copy_ and len(on_gpu) == 1:
            blocking = not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking")
        if blocking:
            self.waits[f"{packet} at {_place()}"] += 1


def _real(value: Any) -> Any:
    return value.host if isinstance(value, CudaTensor) else value


def _shadow(value: Any) -> Any:
    return value.shadow if isinstance(value, CudaTensor) else value


def _check_devices(func: Any, args: Any, tensors: list[Tensor]) -> None:
    packet = func.overloadpacket
    if packet in _ACROSS:
        return
    if packet in _INDEXING:
        tensors = [tensor for tensor in (args[0], *args[2:3]) if isinstance(tensor, Tensor)]
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor)]
    if torch.Tag.pointwise in func.tags or packet in _INDEXING or packet in (_aten._foreach_mul_, _aten._foreach_mul):
        elsewhere = [tensor for tensor in elsewhere if tensor.dim()]  # a number on the CPU goes with anything
    if elsewhere:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in elsewhere)
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device, but {shapes} are on the cpu")


def _place() -> str:
    frames = [f for f in traceback.extract_stack() if "/medtrain/medtrain/" in f.filename or "/medtrain/" in f.filename]
    frames = [f for f in frames if "site-packages" not in f.filename and "/tests/" not in f.filename]
    return f"{frames[-1].filename.rsplit('/medtrain/', 1)[-1]}:{frames[-1].name}" if frames else "elsewhere"


def _group(lists: Any, with_indices: bool = False) -> dict[Any, Any]:
    """What torch has in C++, where a CudaTensor is on no GPU."""
    groups: dict[Any, Any] = {}
    for index, row in enumerate(zip(*(part or [None] * len(lists[0]) for part in lists), strict=True)):
        key = (row[0].device, row[0].dtype)
        columns, indices = groups.setdefault(key, ([[] for _ in lists], []))
        for column, value in zip(columns, row, strict=True):
            if value is not None:
                column.append(value)
        indices.append(index)
    return groups


class _Event:
    def __init__(self, **_: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: _Event) -> float:
        return 1.0


def pretend_gpu(
    monkeypatch: pytest.MonkeyPatch, *, total_gib: float = 24, free_gib: float | None = None, bf16: bool = True
) -> None:
    """Let `torch.cuda` tell of one GPU of a size.

    Args:
        monkeypatch: Of the test.
        total_gib: Its memory.
        free_gib: What nobody uses of it; None is nearly all.
        bf16: Whether it computes bfloat16.
    """
    total = int(total_gib * 2**30)
    free = int((total_gib - 0.5 if free_gib is None else free_gib) * 2**30)
    properties = SimpleNamespace(
        name="Pretended", total_memory=total, major=8 if bf16 else 7, minor=0, multi_processor_count=80, uuid="none"
    )
    fakes: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: (free, total),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 2**30,
        "reset_peak_memory_stats": lambda device=None: None,
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "is_bf16_supported": lambda including_emulation=True: bf16,
        "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
        "set_rng_state": lambda state, device=0: None,
        "is_current_stream_capturing": lambda: False,
        "manual_seed_all": lambda seed: None,
        "Event": _Event,
        "_lazy_init": lambda: None,
        "_lazy_call": lambda *_, **__: None,
        "_exchange_device": lambda index: -1,
        "_maybe_exchange_device": lambda index: -1,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None)
    monkeypatch.setattr(torch._C, "_group_tensors_by_device_and_dtype", _group)
    for owner, name, value in (
        (torch.backends.cudnn, "enabled", False),  # its kernels are none of the CPU's
        (torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark),
        (torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32),
    ):
        monkeypatch.setattr(owner, name, value)  # what a run sets is undone


def pretended(monkeypatch: pytest.MonkeyPatch, **of_gpu: Any) -> Iterator[PretendCuda]:
    """The body of a fixture: a GPU inside, none outside."""
    pretend_gpu(monkeypatch, **of_gpu)
    before = torch.get_float32_matmul_precision(), torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter that moves becomes a CudaTensor
    try:
        with PretendCuda() as gpu:
            yield gpu
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.__future__.set_swap_module_params_on_conversion(before[1])
