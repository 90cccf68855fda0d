"""Memory: counted without data as a real step keeps it; too little is said with numbers."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medtrain.engine import memory
from medtrain.engine.memory import MemoryEstimate, check_memory, describe_sizes, estimate_memory, memory_guard
from medtrain.errors import MedtrainError
from medtrain.registry import build

CPU = torch.device("cpu")


class Task:
    """A model on images [B, 2, 8, 8]."""

    def example_batch(self) -> dict[str, Tensor]:
        return {"image": torch.zeros(1, 2, 8, 8)}

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Any:
        return model(batch["image"])


def config(**changes: Any) -> dict[str, Any]:
    return {
        "data": {"batch_size": 4, "patch_size": (8, 8)},
        "model": {"channels": (4, 8)},
        "trainer": {"ema_decay": None, "accumulate": 1},
        "optimizer": {"name": "adamw"},
        **changes,
    }


def kept_by_a_real_step(model: nn.Module, image: Tensor) -> int:
    """Bytes of what autograd keeps, without the weights."""
    storages: dict[int, Any] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(image)
    return sum(storage.nbytes() for storage in storages.values())


def test_hand_computed() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.ReLU())
    found = estimate_memory(model, Task(), config(), batch_size=4, precision="fp32")  # type: ignore[arg-type]
    image, features = 4 * 2 * 64 * 4, 4 * 3 * 64 * 4  # bytes: input of the convolution, output of the ReLU
    assert found.activations == image + features + 3 * features  # and the loss of these "logits"
    assert found.weights == 2 * 3 * 9 * 4
    assert found.training == 3 * found.weights  # gradient and two moments
    assert found.working == 2 * features
    assert found.gib == (found.activations + found.weights + found.training + found.working) / 2**30


@pytest.mark.parametrize("name", ["unet", "cnn"])
def test_equals_what_a_real_step_keeps(name: str) -> None:
    model: nn.Module
    if name == "unet":
        model = build("model", {"name": "unet", "channels": (4, 8), "strides": ((1, 1), (2, 2)),
                                "kernel_sizes": ((3, 3), (3, 3))},
                      spatial_dims=2, in_channels=2, num_outputs=3)  # fmt: skip
    else:
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = estimate_memory(model, Task(), config(), batch_size=4, precision="fp32")  # type: ignore[arg-type]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())  # not even counters
    real = kept_by_a_real_step(model, torch.randn(4, 2, 8, 8))
    output = model(torch.zeros(4, 2, 8, 8))
    loss = 12 * sum(tensor.numel() for tensor in ([output] if isinstance(output, Tensor) else output))
    assert found.activations - loss == pytest.approx(real, rel=0.02)


def test_half_precision_keeps_half() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.ReLU())
    full, half = (
        estimate_memory(model, Task(), config(), batch_size=4, precision=name)  # type: ignore[arg-type]
        for name in ("fp32", "bf16")
    )
    loss = 3 * 4 * 4 * 3 * 64
    assert 2 * (half.activations - loss) == full.activations - loss
    assert half.training == full.training  # gradients and moments stay float32


def test_too_much_for_the_machine_is_refused_and_tight_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "memory_gib", lambda device: 8.0)
    monkeypatch.setattr(memory, "available_gib", lambda device: 3.0)
    estimate = MemoryEstimate(weights=2**30, training=0, activations=4 * 2**30, working=0)
    with pytest.raises(MedtrainError, match=r"training needs about 5\.00 GiB .* in each of 2 processes") as caught:
        check_memory(estimate, config(), CPU, 2)
    assert "data.batch_size=4 data.patch_size=[8,8] model.channels=[4,8]" in caught.value.message
    assert caught.value.hint is not None
    assert "data.batch_size=2 trainer.accumulate=2" in caught.value.hint
    with caplog.at_level(logging.WARNING):
        check_memory(estimate, config(), CPU, 1)
    assert "3.0 of this machine's 8.0 GiB are free" in caplog.text
    check_memory(None, config(), CPU, 9)
    check_memory(estimate, config(), torch.device("cuda"), 9)  # asked by a real step instead


def engine() -> Any:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU())
    dist = SimpleNamespace(world_size=1, local_world_size=1)
    return SimpleNamespace(device=CPU, dist=dist, model=model, task=Task(), precision=SimpleNamespace(name="fp32"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_running_out_says_what_to_type(error: Exception) -> None:
    with (
        pytest.raises(
            MedtrainError, match=r"^out of memory: this machine has .* a training step needs about"
        ) as caught,
        memory_guard(engine(), config()),
    ):
        raise error
    assert "data.batch_size=4" in caught.value.message
    assert "fewer model.channels" in (caught.value.hint or "")
    assert caught.value.__cause__ is error


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), memory_guard(engine(), config()):
        raise RuntimeError("shapes differ")


def test_a_model_that_looks_at_values_is_not_estimated() -> None:
    class Looks(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image if image.sum() > 0 else -image

    assert memory.try_estimate(Looks(), Task(), config(), batch_size=1, precision="fp32") is None  # type: ignore[arg-type]


def test_sizes_are_shown_as_they_are_typed() -> None:
    images = {"data": {"batch_size": 16, "image_size": [64, 64]}, "model": {}}
    assert describe_sizes(images) == "data.batch_size=16 data.image_size=[64,64]"
    assert 0 < memory.available_gib(CPU) <= memory.memory_gib(CPU)
