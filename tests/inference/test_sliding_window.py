"""Sliding window against a naive reference, the plain forward, and analytic cases."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from medtrain import registry
from medtrain.inference import windows as sw
from medtrain.inference.sliding_window import SlidingWindow
from medtrain.inference.whole_case import predict_logits
from medtrain.inference.windows import gaussian_profile, window_starts


def _net(dims: int, seed: int = 0, channels: int = 2, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    conv = nn.Conv3d if dims == 3 else nn.Conv2d
    return nn.Sequential(conv(channels, 4, 3, padding=1), nn.ReLU(), conv(4, classes, 3, padding=1)).eval()


def _image(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _naive(model: nn.Module, image: Tensor, patch: Sequence[int], overlap: float, sigma: float) -> Tensor:
    """Window by window in float64 with a full volume of weights; the image is at least as large as the patch."""
    starts = [window_starts(s, p, overlap) for s, p in zip(image.shape[1:], patch)]
    weight = torch.ones((), dtype=torch.float64)
    for p in patch:
        x = torch.linspace(-1, 1, p, dtype=torch.float64)
        weight = weight[..., None] * torch.exp(-0.5 * (x / (2 * sigma)) ** 2)
    total, sums = None, torch.zeros(image.shape[1:], dtype=torch.float64)
    for origin in itertools.product(*starts):
        region = tuple(slice(o, o + p) for o, p in zip(origin, patch))
        logits = model(image[(slice(None), *region)][None])[0].double()
        if total is None:
            total = torch.zeros(logits.shape[0], *image.shape[1:], dtype=torch.float64)
        total[(slice(None), *region)] += logits * weight
        sums[region] += weight
    return (total / sums).float()


@pytest.mark.parametrize(
    ("size", "patch", "overlap", "expected"),
    [
        (100, 64, 0.5, [0, 18, 36]),
        (64, 64, 0.5, [0]),
        (300, 128, 0.5, [0, 57, 115, 172]),
        (129, 128, 0.5, [0, 1]),
        (128, 64, 0.0, [0, 64]),
        (10, 4, 0.99, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_window_starts(size: int, patch: int, overlap: float, expected: list[int]) -> None:
    assert window_starts(size, patch, overlap) == expected


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7, 0.95])
def test_windows_cover_every_voxel_with_the_asked_overlap(overlap: float) -> None:
    for size, patch in itertools.product(range(5, 60, 7), range(1, 33, 3)):
        if patch <= size:
            starts = window_starts(size, patch, overlap)
            assert starts[0] == 0
            assert starts[-1] == size - patch
            # rounding may move a start by half a voxel, two neighbours by one
            assert all(0 < b - a <= max(patch * (1 - overlap), 1) + 1 for a, b in itertools.pairwise(starts))


def test_gaussian_weights_at_the_edge() -> None:
    assert gaussian_profile(64, 0.25)[0].item() == pytest.approx(0.1353, abs=1e-4)
    corner = sw.importance_map((64, 64, 64), 0.25, torch.device("cpu"))[0, 0, 0]
    assert corner.item() == pytest.approx(0.00248, abs=1e-5)
    profile = gaussian_profile(63, 0.125)
    assert profile[0].item() == pytest.approx(3.35e-4, abs=1e-6)
    assert profile.argmax() == 31
    assert torch.equal(profile, profile.flip(0))
    assert gaussian_profile(64, 0.01).min() > 0


@pytest.mark.parametrize(
    ("shape", "patch", "overlap", "sigma"),
    [
        ((20, 21, 22), (8, 8, 8), 0.5, 0.125),
        ((11, 33, 17), (4, 16, 10), 0.5, 0.125),  # anisotropic
        ((13, 14, 9), (13, 7, 5), 0.3, 0.25),  # one window along the first axis
        ((9, 9, 9), (4, 4, 4), 0.0, 0.125),
    ],
)
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_equals_naive_reference(
    shape: tuple[int, ...], patch: tuple[int, ...], overlap: float, sigma: float, batch: int
) -> None:
    model, image = _net(3), _image(2, *shape)
    logits = predict_logits(model, image, patch_size=patch, overlap=overlap, sigma_scale=sigma, window_batch=batch)
    assert logits.shape == (3, *shape)
    torch.testing.assert_close(logits, _naive(model, image, patch, overlap, sigma), rtol=1e-5, atol=1e-5)


def test_2d_image_equals_naive_reference() -> None:
    model, image = _net(2), _image(2, 30, 19)
    logits = predict_logits(model, image, patch_size=(12, 8))
    torch.testing.assert_close(logits, _naive(model, image, (12, 8), 0.5, 0.125), rtol=1e-5, atol=1e-5)


def test_single_window_is_the_plain_forward() -> None:
    model, image = _net(3), _image(2, 8, 9, 10)
    with torch.no_grad():
        expected = model(image[None])[0]
    assert torch.equal(predict_logits(model, image, patch_size=(8, 9, 10)), expected)


def test_image_smaller_than_the_patch_is_padded_on_both_sides() -> None:
    model, image = _net(3), _image(2, 5, 9, 4)
    padded = torch.zeros(2, 8, 9, 10)
    padded[:, 1:6, :, 3:7] = image
    with torch.no_grad():
        expected = model(padded[None])[0][:, 1:6, :, 3:7]
    assert torch.equal(predict_logits(model, image, patch_size=(8, 9, 10)), expected)


def test_image_smaller_along_one_axis_only() -> None:
    model, image = _net(3), _image(2, 5, 20, 20)
    logits = predict_logits(model, image, patch_size=(8, 8, 8))
    padded = nn.functional.pad(image, (0, 0, 0, 0, 1, 2))
    expected = _naive(model, padded, (8, 8, 8), 0.5, 0.125)[:, 1:6]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sigma", [0.02, 0.125, 1.0])
def test_constant_network_gives_a_constant(dtype: torch.dtype, sigma: float) -> None:
    values = torch.tensor([1.5, -2.25, 0.0])  # exact in bfloat16

    def model(x: Tensor) -> Tensor:
        return values.to(dtype).reshape(1, 3, 1, 1, 1).expand(len(x), 3, *x.shape[2:])

    logits = predict_logits(model, _image(1, 23, 17, 31), patch_size=(8, 8, 8), sigma_scale=sigma)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, values.reshape(3, 1, 1, 1).expand_as(logits), rtol=2e-6, atol=0)


def test_channels_last_logits_give_the_same_result() -> None:
    model, image = _net(3), _image(2, 20, 20, 20)
    expected = predict_logits(model, image, patch_size=(8, 8, 8))
    turned = predict_logits(
        lambda x: model(x).contiguous(memory_format=torch.channels_last_3d), image, patch_size=(8, 8, 8)
    )
    assert torch.equal(turned, expected)


def test_slabs_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = _net(3), _image(2, 20, 20, 20)
    expected = predict_logits(model, image, patch_size=(8, 8, 8))
    monkeypatch.setattr(sw, "_SLAB_ELEMENTS", 1)
    assert torch.equal(predict_logits(model, image, patch_size=(8, 8, 8)), expected)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_2d_model_runs_slice_by_slice(batch: int) -> None:
    model, image = _net(2), _image(2, 7, 20, 15)
    sizes: list[int] = []

    def counted(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return model(x)

    logits = predict_logits(counted, image, patch_size=(16, 16), window_batch=batch)
    assert logits.shape == (3, 7, 20, 15)
    assert max(sizes) == min(batch, 7)
    for z in range(7):
        expected = predict_logits(model, image[:, z], patch_size=(16, 16))
        torch.testing.assert_close(logits[:, z], expected, rtol=1e-5, atol=1e-5)


def test_bit_identical_when_repeated() -> None:
    model, image = _net(3), _image(2, 20, 21, 22)
    first, second = (predict_logits(model, image, patch_size=(8, 8, 8), mirror_axes=(0, 1, 2)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("axes", "count"), [((), 1), ((2,), 2), ((0, 1), 4), ((0, 1, 2), 8)])
def test_mirroring_averages_logits_of_all_flips(axes: tuple[int, ...], count: int) -> None:
    model, image = _net(3), _image(2, 8, 8, 8)
    calls: list[int] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return model(x)

    logits = predict_logits(counted, image, patch_size=(8, 8, 8), mirror_axes=axes)
    assert len(calls) == count
    with torch.no_grad():
        flips = [c for n in range(len(axes) + 1) for c in itertools.combinations([a + 1 for a in axes], n)]
        expected = torch.stack([model(image.flip(f)[None])[0].flip(f) for f in flips]).mean(0)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_mirrored_prediction_of_a_mirrored_image_is_mirrored() -> None:
    """Holds only if windows and weights are symmetric too; starts of this size are."""
    model, image = _net(3), _image(2, 16, 20, 24)
    logits = predict_logits(model, image, patch_size=(8, 8, 8), mirror_axes=(0, 1, 2))
    turned = predict_logits(model, image.flip(1, 3), patch_size=(8, 8, 8), mirror_axes=(0, 1, 2)).flip(1, 3)
    torch.testing.assert_close(turned, logits, rtol=1e-4, atol=1e-5)


def test_no_gradient_is_kept_and_the_image_is_unchanged() -> None:
    model, image = _net(3), _image(2, 9, 9, 9)
    before = image.clone()
    logits = predict_logits(model, image, patch_size=(8, 8, 8))
    assert not logits.requires_grad
    assert not logits.is_inference()
    assert torch.equal(image, before)


def test_training_output_is_refused() -> None:
    with pytest.raises(AssertionError, match="returns list in evaluation mode"):
        predict_logits(lambda x: [x, x], _image(1, 8, 8, 8), patch_size=(8, 8, 8))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("patch", "device", "expected"),
    [((40, 56, 40), "cpu", 1), ((64, 64), "cpu", 16), ((128, 128, 128), "cuda", 1), ((8, 8), "cuda", 64)],
)
def test_window_batch_follows_patch_and_device(patch: tuple[int, ...], device: str, expected: int) -> None:
    assert sw.default_window_batch(patch, torch.device(device)) == expected


def test_registered_with_documented_parameters() -> None:
    component = registry.get("inference", "sliding_window")
    assert component.target is SlidingWindow
    assert all(p.doc for p in component.params.values())
    built = registry.build("inference", {"name": "sliding_window", "overlap": 0.25})
    assert built == SlidingWindow(overlap=0.25)
