"""Numeric precision of the training step: autocast, loss scaling, clipping and the non-finite policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from medtrain.errors import UsageError

PrecisionName = Literal["fp32", "tf32", "bf16", "fp16"]


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX-512 bf16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose_precision(requested: str, device: torch.device, *, nonfinite: str = "skip") -> tuple[PrecisionName, str]:
    """Resolve `auto` for a device and check that an explicit choice can be honoured.

    Args:
        requested: auto, fp32, tf32, bf16 or fp16.
        device: Where to compute.
        nonfinite: The policy it has to go with.

    Returns:
        The precision and the reason, for the log.

    Raises:
        UsageError: The device cannot do what was asked.
    """
    if requested == "auto":
        return _choose_automatically(device, nonfinite)
    if requested == "fp16" and device.type != "cuda":
        raise UsageError(
            f"trainer.precision=fp16 needs CUDA: the loss scaling it depends on does not exist on {device.type}",
            hint="use trainer.precision=bf16 or fp32",
        )
    if requested == "fp16" and nonfinite != "skip":
        raise UsageError(
            f"trainer.nonfinite={nonfinite} does not go with fp16, whose loss scaling finds its scale by steps that "
            "overflow and are skipped",
            hint="use trainer.precision=bf16 or fp32; a new run may have trainer.nonfinite=skip instead",
        )
    if requested == "tf32" and device.type != "cuda":
        raise UsageError("trainer.precision=tf32 needs CUDA", hint="use trainer.precision=fp32 or auto")
    if requested == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError("this GPU does not compute bfloat16", hint="use trainer.precision=fp16 or auto")
    return requested, "requested"  # type: ignore[return-value]


def _choose_automatically(device: torch.device, nonfinite: str) -> tuple[PrecisionName, str]:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes bfloat16 natively, which needs no loss scaling"
        if nonfinite != "skip":
            return "fp32", f"the GPU has no bfloat16, and float16 does not go with trainer.nonfinite={nonfinite}"
        return "fp16", "the GPU has no bfloat16; float16 with loss scaling"
    if device.type == "cpu" and cpu_has_bf16():
        return "bf16", "the CPU multiplies bfloat16 natively (AVX-512 bf16 or AMX), about twice as fast as float32"
    return "fp32", f"the {device.type} device has no fast reduced precision"


class Precision:
    """Runs the forward pass in the chosen precision and applies the gradients.

    Args:
        name: fp32, tf32, bf16 or fp16.
        device: Device of the model.
        nonfinite: `skip` leaves out an optimizer step whose gradient is not finite, `raise` counts the first one as
            fatal, `ignore` applies it.
    """

    def __init__(
        self, name: PrecisionName, device: torch.device, *, nonfinite: Literal["skip", "raise", "ignore"] = "skip"
    ) -> None:
        self.name = name
        self.device = device
        self.nonfinite = nonfinite
        self.scaler = torch.amp.GradScaler("cuda") if name == "fp16" and device.type == "cuda" else None
        # on the device, read now and then: steps skipped in a row until now, the longest row and the sum since a look
        self._in_row, self._longest, self._skipped = torch.zeros(3, dtype=torch.int64, device=device).unbind()
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
            torch.backends.cudnn.allow_tf32 = name == "tf32"  # on by default: "fp32" would not be

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.name in ("bf16", "fp16"):
            dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
            return torch.autocast(self.device.type, dtype=dtype)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a scalar loss."""
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def clip(
        self, optimizer: Optimizer, parameters: Iterable[Tensor], *, norm: float | None, value: float | None
    ) -> Tensor:
        """Unscale the gradients and clip them; return the norm before clipping, on the device."""
        if self.scaler:
            self.scaler.unscale_(optimizer)
        parameters = [p for p in parameters if p.grad is not None]
        # foreach keeps this to a handful of kernels; error_if_nonfinite would wait for the device
        total = torch.nn.utils.clip_grad_norm_(parameters, norm if norm is not None else float("inf"), foreach=True)
        if value is not None:
            torch.nn.utils.clip_grad_value_(parameters, value, foreach=True)
        return total

    def step(self, optimizer: Optimizer, grad_norm: Tensor) -> None:
        """Apply the gradients, unless they are not finite and the policy says to skip."""
        if self.nonfinite == "ignore":
            optimizer.step()
            return
        bad = ~torch.isfinite(grad_norm)
        self._in_row = torch.where(bad, self._in_row + 1, 0)
        self._longest = torch.maximum(self._longest, self._in_row)
        self._skipped = self._skipped + bad
        if self.scaler is not None:
            # a few overflows in a row are routine: the scaler lowers its scale, 2^16 at first, until there are none
            self.scaler.step(optimizer)
            self.scaler.update()
        elif self.device.type == "cuda" and optimizer.defaults.get("fused"):
            # fused kernels skip on the device when found_inf is set: no wait for the host
            optimizer.grad_scale = None  # type: ignore[attr-defined]
            optimizer.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]
            optimizer.step()
        elif not bool(bad):  # sync: on a CPU there is nothing to wait for; elsewhere the price of a plain optimizer
            optimizer.step()

    def read_skipped(self) -> tuple[int, int]:
        """Steps skipped since the last call, and the most in a row. Waits for the device."""
        skipped, longest = int(self._skipped), int(self._longest)
        self._skipped = torch.zeros_like(self._skipped)
        self._longest = self._in_row.clone()
        return skipped, longest

    def state_dict(self) -> dict[str, Any]:
        """Scaler state and the count of skipped steps."""
        return {
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "skipped": [int(self._in_row), int(self._longest), int(self._skipped)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        counts = torch.tensor(state["skipped"], dtype=torch.int64, device=self.device)
        self._in_row, self._longest, self._skipped = counts.unbind()
