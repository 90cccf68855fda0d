"""The layers that take their own way on the CPU: parity with PyTorch's, values and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.layers import ConvBlock, InstanceNorm, UpConv, conv, norm_layer

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
FORMATS = ["contiguous", "channels_last"]


def features(shape: tuple[int, ...], memory_format: str, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 2
    if memory_format == "channels_last":
        values = values.to(memory_format=LAST[len(shape)])
    return values.to(dtype).requires_grad_()


def value_and_gradients(module: Any, inputs: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    output = module(inputs)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return [output, *torch.autograd.grad((output.float() * weight).sum(), [inputs, *parameters])]


def randomised(norm: InstanceNorm) -> InstanceNorm:
    generator = torch.Generator().manual_seed(2)
    nn.init.uniform_(norm.weight, 0.5, 2, generator=generator)
    nn.init.uniform_(norm.bias, -1, 1, generator=generator)
    return norm


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(3, 16, 5, 6, 7), (1, 5, 4, 4, 4), (2, 8, 9, 10)])
def test_instance_norm_equals_torch(shape: tuple[int, ...], memory_format: str) -> None:
    norm = randomised(InstanceNorm(shape[1]))
    twin = (nn.InstanceNorm3d if len(shape) == 5 else nn.InstanceNorm2d)(shape[1], affine=True)
    twin.load_state_dict(norm.state_dict())
    ours = value_and_gradients(norm, features(shape, memory_format), [norm.weight, norm.bias])
    theirs = value_and_gradients(twin, features(shape, "contiguous"), [twin.weight, twin.bias])
    for one, two in zip(ours, theirs):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_instance_norm_gradient_equals_finite_differences(memory_format: str) -> None:
    norm = randomised(InstanceNorm(3)).double()
    inputs = features((2, 3, 2, 3, 2), memory_format, torch.float64)
    assert torch.autograd.gradcheck(lambda x, w, b: _with(norm, w, b)(x), (inputs, norm.weight, norm.bias))


def _with(norm: InstanceNorm, weight: Tensor, bias: Tensor) -> Any:
    return lambda x: torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_instance_norm_takes_statistics_in_float32(memory_format: str) -> None:
    # mean 100, deviation 1: in bfloat16 (3 digits) the sums would be worthless
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(2, 16, 16, 16, 16, generator=generator) + 100).bfloat16()
    if memory_format == "channels_last":
        values = values.to(memory_format=torch.channels_last_3d)
    output = InstanceNorm(16)(values).detach()
    assert output.dtype == torch.bfloat16
    expected = F.instance_norm(values.double())
    assert (output.double() - expected).abs().max() < 0.02  # half a unit in the last place of 4
    assert output.double().mean((2, 3, 4)).abs().max() < 5e-3


def test_instance_norm_keeps_the_memory_format_and_knows_no_evaluation_mode() -> None:
    norm = InstanceNorm(4)
    inputs = features((2, 4, 3, 3, 3), "channels_last")
    output = norm(inputs)
    assert output.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(norm.eval()(inputs), output)


def test_instance_norm_of_a_single_voxel() -> None:
    with pytest.raises(UsageError, match="single voxel"):
        InstanceNorm(4)(torch.ones(2, 4, 1, 1, 1))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("shape", "stride"), [((2, 6, 3, 4, 5), (2, 2, 2)), ((2, 6, 3, 4, 5), (1, 2, 3)), ((3, 4, 5, 6), (2, 2))]
)
def test_up_conv_equals_torch(shape: tuple[int, ...], stride: tuple[int, ...], memory_format: str) -> None:
    up = UpConv(shape[1], 5, stride)
    nn.init.normal_(up.bias)
    twin = (nn.ConvTranspose3d if len(shape) == 5 else nn.ConvTranspose2d)(shape[1], 5, stride, stride)
    twin.load_state_dict(up.state_dict())
    ours = value_and_gradients(up, features(shape, memory_format), [up.weight, up.bias])
    theirs = value_and_gradients(twin, features(shape, "contiguous"), [twin.weight, twin.bias])
    for one, two in zip(ours, theirs):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    assert memory_format == "contiguous" or ours[0].is_contiguous(memory_format=LAST[len(shape)])


def test_up_conv_runs_in_bfloat16_under_autocast() -> None:
    up = UpConv(8, 4, (2, 2, 2))
    inputs = features((2, 8, 3, 3, 3), "channels_last")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = up(inputs)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), up(inputs), rtol=0.02, atol=0.1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*")
@pytest.mark.parametrize("layer", [InstanceNorm(4), UpConv(4, 2, (2, 2, 2))], ids=["norm", "up"])
def test_a_traced_layer_serves_any_batch_size(layer: nn.Module) -> None:
    two, three = (features((batch, 4, 4, 4, 4), "channels_last").detach() for batch in (2, 3))
    traced = torch.jit.trace(layer, two)
    torch.testing.assert_close(traced(three), layer(three), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "stride"), [((2, 2, 2), 1), ((8, 1, 8), 2), ((1, 1, 1), 1), ((2, 2), 1), ((8, 1), 2)])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_convolution_of_features_narrower_than_the_kernel(
    size: tuple[int, ...], stride: int, memory_format: str
) -> None:
    # in bfloat16 oneDNN takes the weight gradient from memory that was never written
    axes = len(size)
    layer = conv(axes, 16, 16, (3,) * axes, (stride,) * axes)
    inputs = features((2, 16, *size), memory_format)
    expected = value_and_gradients(layer, inputs, [layer.weight])
    for _ in range(5):
        junk = [torch.full((count,), float("nan"), dtype=torch.bfloat16) for count in (64, 512, 4096, 16384, 65536)]
        del junk
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = value_and_gradients(layer, inputs.detach().bfloat16().requires_grad_(), [layer.weight])
        assert low[0].dtype == torch.bfloat16
        for one, two in zip(low, expected):
            torch.testing.assert_close(one.float(), two, rtol=0.05, atol=0.05 * float(two.detach().abs().max()))


def test_convolution_of_low_precision_weights() -> None:
    layer = conv(3, 4, 4, (3, 3, 3), (1, 1, 1)).bfloat16()
    assert layer(torch.ones(1, 4, 2, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_norm_layers() -> None:
    assert isinstance(norm_layer("batch", 2, 8), nn.BatchNorm2d)
    assert isinstance(norm_layer("batch", 3, 8), nn.BatchNorm3d)
    group = norm_layer("group", 3, 16)
    assert isinstance(group, nn.GroupNorm)
    assert group.num_groups == 8
    with pytest.raises(UsageError, match="divisible by 8"):
        norm_layer("group", 3, 12)


def test_block_is_convolution_dropout_norm_activation() -> None:
    block = ConvBlock(3, 2, 4, (3, 1, 3), (1, 2, 2), "instance", 0.5)
    inputs = torch.randn(2, 2, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    assert block(inputs).shape == (2, 4, 6, 3, 3)
    block.eval()
    weight = block.conv.weight
    expected = F.conv3d(inputs, weight, block.conv.bias, stride=(1, 2, 2), padding=(1, 0, 1))
    expected = F.leaky_relu(F.instance_norm(expected), 0.01)
    torch.testing.assert_close(block(inputs), expected, rtol=1e-5, atol=1e-5)
    assert "dropout" not in dict(ConvBlock(3, 2, 4, (3, 3, 3), (1, 1, 1), "instance", 0.0).named_modules())


def test_dropout_zeroes_whole_channels_while_training() -> None:
    torch.manual_seed(0)
    block = ConvBlock(2, 1, 64, (3, 3), (1, 1), "batch", 0.5)
    other = copy.deepcopy(block.dropout)
    dropped = other(torch.ones(1, 64, 4, 4)).flatten(2)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert (dropped.amin(2) == dropped.amax(2)).all()
