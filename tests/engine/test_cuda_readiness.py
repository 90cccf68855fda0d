"""What a GPU changes, without one: choices by its kind and size, and whole runs on a pretended one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from medtrain.engine.derive import _channels_last
from medtrain.engine.device import out_of_memory
from medtrain.engine.memory import memory_guard
from medtrain.engine.precision import choose_precision
from medtrain.errors import MedtrainError, UsageError
from medtrain.export.parity import exact_float32
from medtrain.inference.whole_case import predict_logits
from medtrain.registry import build
from tests.engine.pretend_cuda import DEVICE, PretendCuda, pretend_gpu, pretended
from tests.engine.toy import make_engine, network


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendCuda]:
    yield from pretended(monkeypatch)


class TestPretendedGpu:
    """The stand-in is as strict as a GPU, else what passes on it would prove nothing."""

    def test_tensors_of_two_devices_do_not_go_together(self, gpu: PretendCuda) -> None:
        there = torch.zeros(3, device=DEVICE)
        for operation in (lambda: there + torch.ones(3), lambda: torch.cat([there, torch.ones(3)])):
            with pytest.raises(RuntimeError, match="same device"):
                operation()
        assert (there + torch.tensor(2.0)).tolist() == [2.0] * 3  # a number on the CPU goes with anything

    def test_indices_may_be_elsewhere_and_values_may_not(self, gpu: PretendCuda) -> None:
        there = torch.arange(4.0, device=DEVICE)
        assert there[torch.tensor([1, 3])].tolist() == [1.0, 3.0]
        with pytest.raises(RuntimeError, match="same device"):
            there[torch.tensor([0, 1])] = torch.ones(2)
        with pytest.raises(RuntimeError, match="same device"):
            there.index_select(0, torch.tensor([1]))

    def test_values_are_read_through_the_cpu_alone_and_waits_are_counted(self, gpu: PretendCuda) -> None:
        there = torch.ones(3, device=DEVICE)
        with pytest.raises((TypeError, RuntimeError), match="numpy"):
            there.numpy()
        assert there.cpu().numpy().sum() == 3
        assert float(there.sum()) == 3
        assert sum(gpu.waits.values()) == 2

    def test_a_generator_of_the_cpu_draws_nothing_there(self, gpu: PretendCuda) -> None:
        with pytest.raises(RuntimeError, match="generator"):
            torch.empty(3, device=DEVICE).normal_(generator=torch.Generator())

    def test_training_in_half_precision_learns(self, gpu: PretendCuda) -> None:
        torch.manual_seed(0)
        model = network(dropout=0.1).to(DEVICE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
        scaler = torch.amp.GradScaler("cuda")
        x, y = torch.randn(16, 5).to(DEVICE), torch.randn(16, 1).to(DEVICE)
        losses = []
        for _ in range(20):
            with torch.autocast("cuda", dtype=torch.float16):
                output = model(x)
                loss = (output.float() - y).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        assert output.dtype == torch.float16
        assert losses[-1] < 0.7 * losses[0]


class TestPrecision:
    def test_of_an_old_gpu_whose_steps_may_not_be_skipped_is_float32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend_gpu(monkeypatch, bf16=False)
        assert choose_precision("auto", DEVICE)[0] == "fp16"
        for policy in ("ignore", "raise"):  # loss scaling finds its scale by steps that it skips
            assert choose_precision("auto", DEVICE, nonfinite=policy)[0] == "fp32"
            with pytest.raises(UsageError, match=policy) as caught:
                choose_precision("fp16", DEVICE, nonfinite=policy)
            assert "trainer.precision=bf16 or fp32" in str(caught.value.hint)  # a resume cannot change the policy

    def test_of_a_new_gpu_is_bfloat16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend_gpu(monkeypatch)
        assert choose_precision("auto", DEVICE, nonfinite="raise")[0] == "bf16"

    @pytest.mark.parametrize("setting", ["high", "highest"])
    def test_an_export_leaves_one_interface_of_tf32_in_use(self, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", setting == "high")
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(setting)
        try:
            with exact_float32(DEVICE):  # torch raises where it is told by both
                assert not torch.backends.cuda.matmul.allow_tf32
                assert not torch.backends.cudnn.allow_tf32
            assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (setting == "high")
        finally:
            torch.set_float32_matmul_precision(before)


class TestRunningOut:
    @pytest.mark.parametrize(
        "message",
        [
            "CUDA out of memory. Tried to allocate 2.00 GiB.",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        ],
    )
    def test_is_said_of_a_gpu_with_what_to_type_and_the_last_checkpoint_is_whole(
        self, gpu: PretendCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
    ) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2 * 2**30, 24 * 2**30))
        engine = make_engine(tmp_path, steps=6, checkpoint="2step", evaluate="100step")
        engine.device = DEVICE  # as far as the message is concerned
        step = engine.train_step

        def fail(batches: Any) -> None:
            if engine.step == 3:
                raise (torch.OutOfMemoryError if "Tried" in message else RuntimeError)(message)
            step(batches)

        monkeypatch.setattr(engine, "train_step", fail)
        config = {
            "data": {"batch_size": 4}, "model": {}, "optimizer": {"name": "adamw"},
            "trainer": {"accumulate": 1, "ema_decay": None},
        }  # fmt: skip
        with pytest.raises(MedtrainError) as caught, memory_guard(engine, config):
            engine.fit()
        assert caught.value.message.startswith(
            "out of memory: Pretended has 24.0 GiB, of which others take 22.0; a training step needs about"
        )
        assert "(data.batch_size=4)" in caught.value.message
        assert "data.batch_size=2 trainer.accumulate=2" in (caught.value.hint or "")
        last = engine.checkpoints.last()
        assert last is not None
        assert last.step == 2
        make_engine(tmp_path / "again", steps=6).load(last)

    def test_other_errors_are_no_lack_of_memory(self) -> None:
        assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
        assert not out_of_memory(ValueError("out of memory"))  # nobody computes with this


def test_features_of_instance_norm_lie_with_the_channels_first_on_a_gpu() -> None:
    assert not _channels_last(DEVICE, {"norm": "instance"})[0]
    assert _channels_last(DEVICE, {"norm": "batch"})[0]
    assert _channels_last(DEVICE, {})[0]
    assert _channels_last(torch.device("cpu"), {"norm": "instance"})[0]


def test_the_wait_for_a_device_that_lags_behind_counts_as_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tmp_path, steps=4, evaluate="100step")
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    read = engine.meter.read

    def late(dist: Any) -> dict[str, float]:
        now[0] += 3.0
        return read(dist)

    monkeypatch.setattr(engine.meter, "read", late)
    batches = engine.batches_from_here()
    for _ in range(2):
        engine.train_step(batches)
    engine._log()
    assert engine.clock.state_dict()["train_seconds"] == 3.0
    assert engine.clock.total_steps(2) == 4


@pytest.mark.slow
def test_a_compiled_network_has_a_few_graphs_for_windows_of_any_number() -> None:
    torch._dynamo.reset()
    settings = {"name": "unet", "channels": (4, 8), "strides": (1, 2), "kernel_sizes": (3, 3), "norm": "instance"}
    model = build("model", settings, spatial_dims=2, in_channels=1, num_outputs=2).eval()
    shapes = [(8, 8), (8, 12), (16, 16), (8, 20), (12, 20), (24, 24), (32, 16)]
    images = [torch.randn(1, *shape) for shape in shapes]

    def predict(image: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return predict_logits(model, image, patch_size=(8, 8), window_batch=4, mirror_axes=(0,))

    plain = [predict(image) for image in images]
    model.compile()
    counters.clear()
    graphs = []
    for image, wanted in zip(images, plain, strict=True):
        torch.testing.assert_close(predict(image), wanted, rtol=1e-4, atol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[-1] <= 6
    assert graphs[3:] == [graphs[3]] * len(graphs[3:])  # one window, some, and any number: no case adds another
    torch._dynamo.reset()
