"""The U-Net: its size, its outputs, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from medtrain.errors import MedtrainError, UsageError
from medtrain.models.unet import UNet
from medtrain.registry import build

_SHAPE = {"spatial_dims": 3, "in_channels": 1, "num_outputs": 3}
_STAGES = {"channels": (4, 6, 8, 10), "strides": (1, 2, 2, 2), "kernel_sizes": (3, 3, 3, 3)}


def make(**settings: Any) -> UNet:
    torch.manual_seed(0)
    shape = {key: settings.pop(key, default) for key, default in _SHAPE.items()}
    model: UNet = build("model", {"name": "unet", **_STAGES, **settings}, **shape)
    return model


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameters_are_those_of_nnunets_hippocampus_network() -> None:
    model = make(channels=(32, 64, 128, 256))

    def block(before: int, after: int) -> int:  # 3x3x3 convolution with bias, scale and shift of the norm
        return 27 * before * after + after + 2 * after

    widths = (32, 64, 128, 256)
    expected = block(1, 32) + block(32, 32)
    for before, after in pairwise(widths):
        expected += block(before, after) + block(after, after)
        expected += 8 * after * before + before  # transposed convolution 2x2x2
        expected += block(2 * before, before) + block(before, before)
    heads = {width: 3 * width + 3 for width in (32, 64, 128)}
    # nnU-Net has a head at every decoder resolution; the coarsest has loss weight zero and is left out here
    assert expected + sum(heads.values()) == 5_603_177
    assert count(model) == 5_603_177 - heads[128]


def test_logits_have_the_size_of_the_image() -> None:
    model = make().eval()
    assert model(images(2, 1, 16, 8, 24)).shape == (2, 3, 16, 8, 24)


def test_two_dimensions_and_several_channels() -> None:
    model = make(spatial_dims=2, in_channels=4, num_outputs=2).eval()
    assert model(images(3, 4, 16, 24)).shape == (3, 2, 16, 24)
    assert all(isinstance(module, nn.Conv2d) for module in model.modules() if hasattr(module, "kernel_size"))


def test_deep_supervision_outputs_while_training() -> None:
    model = make()
    outputs = model(images(2, 1, 16, 16, 16))
    assert [tuple(output.shape) for output in outputs] == [(2, 3, 16, 16, 16), (2, 3, 8, 8, 8)]
    model.eval()
    assert isinstance(model(images(2, 1, 16, 16, 16)), torch.Tensor)


@pytest.mark.parametrize(("stages", "outputs"), [(2, 1), (3, 1), (4, 2), (5, 3)])
def test_number_of_outputs(stages: int, outputs: int) -> None:
    model = make(channels=(4,) * stages, strides=(1,) + (2,) * (stages - 1), kernel_sizes=(3,) * stages)
    assert len(model(images(1, 1, 32, 32, 32))) == len(model.heads) == outputs


def test_without_deep_supervision_there_is_one_head() -> None:
    model = make(deep_supervision=False)
    assert isinstance(model(images(1, 1, 8, 8, 16)), torch.Tensor)
    assert len(model.heads) == 1


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_every_parameter_gets_a_gradient(deep_supervision: bool) -> None:
    model = make(deep_supervision=deep_supervision)
    outputs = model(images(2, 1, 16, 16, 16))
    sum(output.square().mean() for output in (outputs if deep_supervision else [outputs])).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a bias in front of a norm is cancelled by it; it exists because nnU-Net has it
    assert not [name for name in dead if not name.endswith("conv.bias")]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_anisotropic_strides_and_kernels() -> None:
    model = make(channels=(4, 6, 8), strides=(1, (1, 2, 2), (2, 2, 3)), kernel_sizes=((1, 3, 3), (1, 3, 3), 3)).eval()
    assert model.divisor == (2, 4, 6)
    assert model(images(1, 1, 6, 8, 12)).shape == (1, 3, 6, 8, 12)
    assert model.encoder[0][0].conv.kernel_size == (1, 3, 3)


def test_lists_from_a_config_serve_as_well_as_tuples() -> None:
    model = make(channels=[4, 6], strides=[1, [2, 2, 1]], kernel_sizes=[3, 3])
    assert model.divisor == (2, 2, 1)


def test_number_of_convolutions() -> None:
    model = make(convs_per_stage=3, decoder_convs_per_stage=1)
    assert {len(stage) for stage in model.encoder} == {3}
    assert {len(stage) for stage in model.decoder} == {1}
    assert {len(stage) for stage in make(convs_per_stage=1).decoder} == {1}


def test_weights_follow_he() -> None:
    model = make(channels=(16, 32, 64, 64))
    conv = model.encoder[2][1].conv
    assert conv.weight.std().item() == pytest.approx((2 / (1.0001 * 64 * 27)) ** 0.5, rel=0.02)
    assert conv.bias.abs().max() == 0
    assert model.heads[0].weight.std().item() == pytest.approx((2 / 16) ** 0.5, rel=0.25)
    # PyTorch's fan-in of a transposed convolution: its output channels times the kernel
    assert model.up[0].weight.std().item() == pytest.approx((2 / (1.0001 * 64 * 8)) ** 0.5, rel=0.02)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    one, two = make(), make()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_memory_format_does_not_change_the_result(norm: str, spatial_dims: int) -> None:
    model = make(norm=norm, spatial_dims=spatial_dims, channels=(8, 8, 16), strides=(1, 2, 2), kernel_sizes=(3, 3, 3))
    image = images(2, 1, *[8] * spatial_dims)
    last = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    results = []
    for memory_format in (torch.contiguous_format, last):
        model.to(memory_format=memory_format).zero_grad()
        outputs = model(image.to(memory_format=memory_format))
        sum(output.square().mean() for output in outputs).backward()
        results.append([outputs[0].detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_features_stay_channels_last() -> None:
    model = make().to(memory_format=torch.channels_last_3d)
    seen: list[str] = []

    def check(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if not output.is_contiguous(memory_format=torch.channels_last_3d):
            seen.append(f"{module} {tuple(output.shape)} {output.stride()}")

    for name, module in model.named_modules():
        if not list(module.children()) and not name.startswith("heads"):
            module.register_forward_hook(check)
    model(images(2, 1, 16, 16, 16).to(memory_format=torch.channels_last_3d))
    assert seen == []


def test_dropout_acts_while_training_only() -> None:
    model = make(dropout=0.5, deep_supervision=False)
    image = images(1, 1, 8, 8, 16)
    assert not torch.equal(model(image), model(image))
    model.eval()
    assert torch.equal(model(image), model(image))


@pytest.mark.parametrize("shape", [(1, 2, 8, 8, 8), (1, 1, 8, 8)])
def test_an_image_of_other_channels_or_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(MedtrainError, match=r"expects images \[B, 1, D, H, W\]"):
        make()(images(*shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": None, "strides": None}, "needs model.channels, model.strides, and no plan"),
        ({"channels": (4, 8)}, "model.channels has 2, model.strides has 4, model.kernel_sizes has 4"),
        ({"channels": (4,), "strides": (1,), "kernel_sizes": (3,)}, "two stages or more"),
        ({"channels": (4, 0, 8, 8)}, "must be positive"),
        ({"kernel_sizes": (3, 3, 2, 3)}, "must be odd"),
        ({"strides": (2, 2, 2, 2)}, "must start with 1"),
        ({"strides": (1, (2, 2), 2, 2)}, "one number or 3"),
        ({"strides": (1, 0, 2, 2)}, "all positive"),
    ],
)
def test_contradicting_stages_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**settings)


def test_export_with_free_batch_and_size() -> None:
    model = make().eval()
    axes = {0: torch.export.Dim("batch", min=1, max=8)}
    axes |= {axis: 8 * torch.export.Dim(f"size{axis}", min=1, max=8) for axis in (2, 3, 4)}
    program = torch.export.export(model, (images(2, 1, 16, 16, 24),), dynamic_shapes=(axes,))
    other = images(3, 1, 24, 16, 32)
    torch.testing.assert_close(program.module()(other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*")
def test_trace_with_free_batch_and_size() -> None:
    model = make().eval()
    traced = torch.jit.trace(model, images(2, 1, 16, 16, 16))
    other = images(1, 1, 24, 16, 32)
    torch.testing.assert_close(traced(other), model(other), rtol=1e-4, atol=1e-5)


def test_trains_in_bfloat16_like_in_float32() -> None:
    results = []
    for enabled in (False, True):
        model = make(channels=(8, 16, 16), strides=(1, 2, 2), kernel_sizes=(3, 3, 3), deep_supervision=False)
        model.to(memory_format=torch.channels_last_3d)
        image = images(2, 1, 8, 8, 8).to(memory_format=torch.channels_last_3d)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            logits = model(image)
        logits.float().square().mean().backward()
        results.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert logits.dtype == (torch.bfloat16 if enabled else torch.float32)
    assert torch.nn.functional.cosine_similarity(results[0], results[1], dim=0) > 0.99
