"""Every network and every loss on a pretended GPU: devices are not mixed, and no step waits for the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from medtrain.engine.ema import EMA
from medtrain.engine.precision import Precision
from medtrain.errors import UsageError
from medtrain.losses.deep_supervision import DeepSupervisionLoss
from medtrain.registry import build, get, names
from tests.engine.pretend_cuda import DEVICE, PretendCuda, pretended
from tests.models.test_networks import OF_MONAI, TINY, make, models


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendCuda]:
    yield from pretended(monkeypatch)


@pytest.mark.parametrize("name", models(TINY))
def test_a_network_makes_a_step(gpu: PretendCuda, name: str) -> None:
    with warnings.catch_warnings():
        if name in OF_MONAI:
            warnings.simplefilter("ignore")  # its own
        side = 64 if name == "swin_unetr" else 32
        model = make(name, (side, side)).to(DEVICE)
    loss = DeepSupervisionLoss(build("loss", {"name": "dice_ce"}, num_classes=3, regions=None).to(DEVICE))
    optimizer = build("optimizer", {"name": "adamw"}, model=model)
    precision, ema = Precision("bf16", DEVICE), EMA(model, decay=0.9)
    label = torch.randint(0, 3, (2, side, side)).to(DEVICE)
    image = torch.randn(2, 1, side, side).to(DEVICE)
    before = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    gpu.waits.clear()
    model.train()
    with precision.autocast():
        value = loss(model(image), label)
    precision.backward(value)
    silent = [key for key, p in model.named_parameters() if p.grad is None]
    norm = precision.clip(optimizer, model.parameters(), norm=1.0, value=1.0)
    precision.step(optimizer, norm)
    optimizer.zero_grad(set_to_none=True)
    ema.update()
    assert gpu.waits == {}
    assert silent == []  # DistributedDataParallel would wait for theirs in vain
    assert value.dtype == norm.dtype == torch.float32
    with ema.applied(), torch.inference_mode(), precision.autocast():
        model.eval()
        assert model(image).device == DEVICE
    after = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    assert any(not torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("regions", [None, ((1, 2), (2,))], ids=["classes", "regions"])
@pytest.mark.parametrize("name", [name for name in names("loss") if "segmentation" in get("loss", name).tags])
def test_a_loss_is_the_same_there(gpu: PretendCuda, name: str, regions: tuple[tuple[int, ...], ...] | None) -> None:
    def make_loss() -> torch.nn.Module:
        return build("loss", {"name": name}, num_classes=3, regions=regions, targets=None)

    try:
        loss = make_loss()
    except UsageError:
        pytest.skip("not for such outputs")
    generator = torch.Generator().manual_seed(0)
    outputs = 3 if regions is None else len(regions)
    logits = torch.randn(2, outputs, 6, 7, 8, generator=generator)
    label = torch.randint(0, 4, (2, 6, 7, 8), generator=generator)
    annotated = torch.tensor([[True] * outputs, [True] + [False] * (outputs - 1)])
    here = loss(logits, label, ignore_index=3, annotated=annotated)
    there = [logits.to(DEVICE).requires_grad_(), label.to(DEVICE)]
    on_gpu = make_loss().to(DEVICE)
    known = annotated.to(DEVICE)
    gpu.waits.clear()
    value = on_gpu(*there, ignore_index=3, annotated=known)
    value.backward()
    assert gpu.waits == {}
    torch.testing.assert_close(value.detach().cpu(), here)
    assert there[0].grad is not None
    assert there[0].grad.device == DEVICE
