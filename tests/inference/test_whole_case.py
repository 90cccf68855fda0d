"""Whole scans in slabs against one volume of logits, interpolated and decided in double precision."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from medtrain.data.geometry import CaseGeometry
from medtrain.data.io.nifti import SourceGrid
from medtrain.errors import UsageError
from medtrain.inference import room as rooms
from medtrain.inference import way_back
from medtrain.inference.room import Room, free_memory, parse_size
from medtrain.inference.sliding_window import SlidingWindow
from medtrain.inference.whole_case import predict_label, predict_logits
from medtrain.inference.windows import Windows

CPU = torch.device("cpu")
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def geometry_of(
    shape: Sequence[int], own: Sequence[float], network: Sequence[float], crop: Box | None = None
) -> CaseGeometry:
    """A RAS scan of canonical shape and spacing (D, H, W), cropped and brought to the network's spacing."""
    d, h, w = shape
    affine = np.diag([own[2], own[1], own[0], 1.0])
    grid = SourceGrid(tuple(tuple(float(v) for v in row) for row in affine), (w, h, d))
    return CaseGeometry.between(grid, crop or ((0, d), (0, h), (0, w)), network)


def net(dims: int, outputs: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    conv = nn.Conv3d if dims == 3 else nn.Conv2d
    return nn.Sequential(conv(1, 4, 3, padding=1), nn.ReLU(), conv(4, outputs, 3, padding=1)).eval()


def image_for(geometry: CaseGeometry, seed: int = 1) -> Tensor:
    return torch.randn((1, *geometry.resampled_shape), generator=torch.Generator().manual_seed(seed))


def on_source(logits: Tensor, geometry: CaseGeometry) -> np.ndarray:
    """[K, D, H, W] of the scan's box by scipy in double precision, the nearest sample along the coarse axis."""
    out = logits.double().numpy()
    for axis, wanted in enumerate(geometry.cropped_shape):
        have = out.shape[1 + axis]
        at = (np.arange(wanted) + 0.5) * have / wanted - 0.5
        if axis == geometry.low_axis:
            out = out.take(np.clip(np.floor(at + 0.5 + 1e-9).astype(int), 0, have - 1), axis=1 + axis)
        elif have != wanted:
            matrix = np.stack([ndimage.map_coordinates(e, [at], order=1, mode="nearest") for e in np.eye(have)], axis=1)
            out = np.moveaxis(np.tensordot(matrix, out, axes=(1, 1 + axis)), 0, 1 + axis)
    return out


def check(label: np.ndarray, logits: Tensor, geometry: CaseGeometry, regions: Any = None) -> None:
    """Equal wherever the decision does not hang on rounding."""
    expected = np.zeros(geometry.canonical_shape, dtype=int)
    sure = np.ones(geometry.canonical_shape, dtype=bool)
    inside = tuple(slice(*side) for side in geometry.crop)
    values = on_source(logits, geometry)
    if regions is None:
        expected[inside] = values.argmax(0)
        two = np.sort(values, axis=0)[-2:]
        sure[inside] = two[1] - two[0] > 1e-4
    else:
        painted = np.zeros(values.shape[1:], dtype=int)
        for channel, region in zip(values, regions):
            painted[channel > 0] = region[0]
        expected[inside] = painted
        sure[inside] = (np.abs(values) > 1e-4).all(0)
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(label[sure], expected[sure])


CASES = [
    ((20, 24, 28), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), None, (8, 8, 8)),  # as it is
    ((20, 24, 28), (2.0, 1.0, 1.0), (1.3, 1.2, 0.7), None, (8, 8, 8)),  # finer
    ((40, 44, 36), (1.0, 0.8, 0.9), (1.7, 1.9, 1.6), None, (8, 10, 12)),  # coarser
    ((12, 41, 39), (5.0, 0.9, 0.9), (2.5, 1.1, 1.2), None, (8, 8, 8)),  # the coarse axis on its own
    ((30, 14, 15), (1.0, 1.0, 1.0), (0.9, 1.3, 1.0), ((3, 30), (0, 11), (2, 13)), (8, 8, 8)),  # cropped, long in D
    ((9, 33, 10), (1.0, 1.0, 1.0), (1.0, 1.4, 1.0), None, (16, 8, 16)),  # padded, long in H
    ((7, 6, 5), (1.0, 1.0, 1.0), (0.8, 1.0, 1.3), None, (16, 16, 16)),  # a single window
    ((30, 3, 3), (1.0, 1.0, 1.0), (0.03, 1.0, 1.0), None, (8, 8, 8)),  # many rows of few
    ((3, 40, 3), (1.0, 1.0, 1.0), (1.0, 9.0, 1.0), None, (4, 4, 4)),
]


@pytest.mark.parametrize(("shape", "own", "network", "crop", "patch"), CASES)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_equals_deciding_a_volume_of_logits(
    shape: tuple[int, ...], own: Any, network: Any, crop: Any, patch: tuple[int, ...], overlap: float
) -> None:
    geometry = geometry_of(shape, own, network, crop)
    model, image = net(3), image_for(geometry)
    logits = predict_logits(model, image, patch_size=patch, overlap=overlap)
    label = predict_label([model], [image], geometry, patch_size=patch, regions=None, overlap=overlap)
    assert label.shape == shape
    assert label.dtype == np.uint8
    check(label, logits, geometry)


@pytest.mark.parametrize("slab", [60, 3000])
def test_slabs_do_not_change_the_result(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for shape, own, network, crop, patch in CASES[1:6]:
        geometry = geometry_of(shape, own, network, crop)
        model, image = net(3), image_for(geometry)
        expected = predict_label([model], [image], geometry, patch_size=patch, regions=None)
        with monkeypatch.context() as patched:
            patched.setattr(way_back, "_SLAB_ELEMENTS", {"cpu": slab})
            label = predict_label([model], [image], geometry, patch_size=patch, regions=None)
        np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize(("shape", "own", "network", "crop", "patch"), CASES)
def test_regions_are_painted(shape: tuple[int, ...], own: Any, network: Any, crop: Any, patch: tuple[int, ...]) -> None:
    regions = ((1, 2, 3), (3, 2), (2,))
    geometry = geometry_of(shape, own, network, crop)
    model, image = net(3), image_for(geometry)
    logits = predict_logits(model, image, patch_size=patch, mirror_axes=(0, 2))
    label = predict_label([model], [image], geometry, patch_size=patch, regions=regions, mirror_axes=(0, 2))
    assert set(np.unique(label)) <= {0, 1, 2, 3}
    check(label, logits, geometry, regions)


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("patch", [(8, 8), (40, 12)])
def test_slices_of_a_2d_model(patch: tuple[int, int], batch: int) -> None:
    geometry = geometry_of((7, 30, 26), (3.0, 1.0, 1.0), (3.0, 1.4, 0.8))
    model, image = net(2), image_for(geometry)
    sizes: list[int] = []

    def counted(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return model(x)

    logits = predict_logits(model, image, patch_size=patch)
    label = predict_label([counted], [image], geometry, patch_size=patch, regions=None, window_batch=batch)
    assert max(sizes) == min(batch, 7)
    check(label, logits, geometry)


def test_the_batch_crosses_layers_of_windows() -> None:
    """A forward takes full batches; 27 windows in batches of 4 are 7 forwards, not 9."""
    geometry = geometry_of((16, 16, 16), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    model, image = net(3), image_for(geometry)
    sizes: list[int] = []

    def counted(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return model(x)

    label = predict_label([counted], [image], geometry, patch_size=(8, 8, 8), regions=None, window_batch=4)
    assert sizes == [4] * 6 + [3]
    one = predict_label([model], [image], geometry, patch_size=(8, 8, 8), regions=None, window_batch=1)
    np.testing.assert_array_equal(label, one)


def test_several_models_are_averaged_as_probabilities() -> None:
    geometry = geometry_of((12, 13, 11), (1.0, 1.0, 1.0), (1.2, 0.9, 1.0))
    models, images = [net(3, seed=s) for s in range(3)], [image_for(geometry, s) for s in range(3)]

    def mean_of(images: Sequence[Tensor]) -> Tensor:
        """One model whose channels are the images of all, so that the plain path averages."""
        joint = torch.cat(list(images))

        def forward(x: Tensor) -> Tensor:
            parts = [model(x[:, i : i + 1]).softmax(1) for i, model in enumerate(models)]
            return torch.stack(parts).mean(0)

        return predict_logits(forward, joint, patch_size=(8, 8, 8))

    label = predict_label(models, images, geometry, patch_size=(8, 8, 8), regions=None)
    check(label, mean_of(images), geometry)
    same = predict_label(models, images[:1], geometry, patch_size=(8, 8, 8), regions=None)
    check(same, mean_of(images[:1] * 3), geometry)
    assert (label != same).any()


def test_several_models_of_regions() -> None:
    """Where one model is sure and two are not, the mean of the probabilities decides, not that of the logits."""
    geometry = geometry_of((4, 4, 4), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))

    def constant(*values: float) -> nn.Module:
        class Constant(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.tensor(values).reshape(1, -1, 1, 1, 1).expand(len(x), -1, *x.shape[2:])

        return Constant()

    models = [constant(9.0, 1.0), constant(-1.0, 1.0), constant(-1.0, -9.0)]  # mean probabilities 0.51 and 0.49
    label = predict_label(models, [image_for(geometry)], geometry, patch_size=(4, 4, 4), regions=((1,), (2,)))
    assert (label == 1).all()
    opposite = [constant(-9.0, 9.0), constant(1.0, -1.0), constant(1.0, -1.0)]
    label = predict_label(opposite, [image_for(geometry)], geometry, patch_size=(4, 4, 4), regions=((1,), (2,)))
    assert (label == 2).all()  # 0.49 and 0.51


def test_more_classes_than_a_byte_holds() -> None:
    geometry = geometry_of((4, 4, 4), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))

    def forward(x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 300, *x.shape[2:])
        out[:, 299] = 1
        return out

    label = predict_label([forward], [image_for(geometry)], geometry, patch_size=(4, 4, 4), regions=None)
    assert label.dtype == np.int16
    assert (label == 299).all()


def test_held_rows_are_few() -> None:
    """Along the long axis; along the last one where that costs little."""
    long = Windows((700, 64, 64), (16, 16, 16), overlap=0.5, batch=1)
    assert (long.axis, long.depth) == (0, 16)
    assert Windows((160, 256, 256), (96, 96, 96), overlap=0.5, batch=1).axis == 2
    assert Windows((70, 60, 60), (16, 16, 16), overlap=0.5, batch=1).axis == 2
    assert Windows((70, 60, 16), (16, 16, 16), overlap=0.5, batch=1).axis == 0


def test_windows_come_layer_by_layer() -> None:
    windows = Windows((9, 40, 9), (8, 8, 8), overlap=0.5, batch=1)
    starts = [group[0][windows.axis].start for group in windows.batches()]
    assert windows.axis == 1
    assert starts == sorted(starts)
    assert len(starts) == windows.count == len({tuple((s.start, s.stop) for s in g[0]) for g in windows.batches()})
    assert {s.start for g in windows.batches() for s in g[0][:1]} == {0, 1}


@pytest.mark.parametrize(("shape", "own", "network", "crop", "patch"), CASES)
def test_a_file_holds_what_memory_does_not(
    shape: tuple[int, ...],
    own: Any,
    network: Any,
    crop: Any,
    patch: tuple[int, ...],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("medtrain"), "propagate", True)
    monkeypatch.setattr(way_back, "_SLAB_ELEMENTS", {"cpu": 500})
    geometry = geometry_of(shape, own, network, crop)
    model, image = net(3), image_for(geometry)
    expected = predict_label([model], [image], geometry, patch_size=patch, regions=None)
    limit = way_back.WayBack(geometry, None, Windows(image.shape[1:], patch, overlap=0.5, batch=1).axis).temporaries(3)
    with caplog.at_level(logging.INFO, "medtrain"):
        label = predict_label([model], [image], geometry, patch_size=patch, regions=None, max_memory=limit + 1)
    np.testing.assert_array_equal(label, expected)
    several = Windows(image.shape[1:], patch, overlap=0.5, batch=1).count > 1
    assert ("are kept in a file in" in caplog.text) == several


def test_too_little_memory_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = geometry_of((20, 24, 28), (1.0, 1.0, 1.0), (1.3, 1.0, 1.0))
    arguments: dict[str, Any] = {"patch_size": (8, 8, 8), "regions": None}
    with pytest.raises(UsageError, match=r"inference.max_memory: 0.000954 MiB is too little") as caught:
        predict_label([net(3)], [image_for(geometry)], geometry, **arguments, max_memory=1000)
    assert caught.value.hint is not None
    needed = parse_size(caught.value.hint.split("=")[1].split()[0])
    predict_label([net(3)], [image_for(geometry)], geometry, **arguments, max_memory=needed)
    monkeypatch.setattr(rooms, "_scratch_folders", lambda: [])
    with pytest.raises(UsageError, match="no temporary folder on a disk"):
        Room(2**20).store(2**20, temporaries=0, device=CPU)


def test_accumulators_in_a_file_are_zero_and_keep_what_is_written() -> None:
    store = Room(2**20).store(2**20, temporaries=0, device=CPU)
    assert store.on_disk
    assert not store.tensor.any()
    store.tensor[::7] = 3.0
    store.touched(2**30)  # its pages are given back to the system
    assert store.tensor.sum() == 3.0 * len(store.tensor[::7])


def test_accumulators_in_a_file_where_the_system_reserves_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fallocate")  # as on macOS
    store = Room(2**20).store(2**20, temporaries=0, device=CPU)
    assert store.on_disk
    assert store.tensor.numel() == 2**20
    assert not store.tensor.any()
    usage = shutil.disk_usage(Path.cwd())._replace(free=2**22 - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UsageError, match="no temporary folder on a disk has 4 MiB to spare"):
        Room(2**20).store(2**20, temporaries=0, device=CPU)


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2**31), ("800 MB", 800 * 10**6), ("1.5kb", 1500), ("12B", 12), ("1KiB", 1024)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["2", "GB", "2 G", "-1GB", "0MB", "2 gigabytes", "1IB"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


def test_free_memory_is_that_of_the_machine() -> None:
    assert 2**26 < free_memory() < 2**50


def test_settings_reach_the_function() -> None:
    """Every setting that concerns logits changes the labels or the calls."""
    geometry = geometry_of((22, 8, 9), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    model, image = net(3), image_for(geometry)
    arguments: dict[str, Any] = {"patch_size": (8, 8, 8), "regions": None}

    def label(settings: SlidingWindow, *, mirror: bool = False) -> np.ndarray:
        return settings.predict_label([model], [image], geometry, mirror=mirror, **arguments)

    base = label(SlidingWindow())
    np.testing.assert_array_equal(base, predict_label([model], [image], geometry, **arguments))
    for changed in (SlidingWindow(overlap=0.25), SlidingWindow(sigma_scale=0.3)):
        assert (label(changed) != base).any()
    mirrored = label(SlidingWindow(), mirror=True)
    expected = predict_label([model], [image], geometry, **arguments, mirror_axes=(0, 1, 2))
    np.testing.assert_array_equal(mirrored, expected)
    one_axis = label(SlidingWindow(mirror_axes=(1,)), mirror=True)
    assert any((one_axis != other).any() for other in (base, mirrored))
    with pytest.raises(UsageError, match=r"inference.max_memory"):
        label(SlidingWindow(max_memory="1kB"))


def test_wrong_mirror_axis_is_a_clear_error() -> None:
    geometry = geometry_of((4, 8, 8), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    settings = SlidingWindow(mirror_axes=(0, 2))
    with pytest.raises(UsageError, match=r"names axis 2; a 2-D patch has axes 0 to 1"):
        settings.predict_label([net(2)], [image_for(geometry)], geometry, patch_size=(8, 8), regions=None, mirror=True)


def test_bit_identical_when_repeated() -> None:
    geometry = geometry_of((20, 21, 22), (1.0, 1.0, 1.0), (1.1, 0.9, 1.0))
    model, image = net(3), image_for(geometry)
    labels = [predict_label([model], [image], geometry, patch_size=(8, 8, 8), regions=None) for _ in range(2)]
    np.testing.assert_array_equal(*labels)


def test_only_the_network_runs_in_reduced_precision() -> None:
    geometry = geometry_of((20, 21, 22), (1.0, 1.0, 1.0), (1.1, 0.9, 1.0))
    image = image_for(geometry)

    def forward(x: Tensor) -> Tensor:  # nothing that autocast would change
        return torch.cat([x, x.square() - 0.7, x * 0.3 + 0.2], dim=1)

    expected = predict_label([forward], [image], geometry, patch_size=(8, 8, 8), regions=None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        label = predict_label([forward], [image], geometry, patch_size=(8, 8, 8), regions=None)
    np.testing.assert_array_equal(label, expected)


@pytest.mark.cuda
def test_cuda_equals_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the accumulators on the device, in main memory, and in a file."""
    geometry = geometry_of((20, 24, 28), (2.0, 1.0, 1.0), (1.3, 1.2, 0.7))
    model, image = net(3), image_for(geometry)
    logits = predict_logits(model, image, patch_size=(8, 8, 8), mirror_axes=(0, 1))
    monkeypatch.setattr(way_back, "_SLAB_ELEMENTS", {"cpu": 64, "cuda": 2**20})
    least = way_back.WayBack(geometry, None, 2).temporaries(3)
    for limit, elsewhere in itertools.product([None, least + 1], [False, True]):
        with monkeypatch.context() as patched:
            if elsewhere:
                patched.setattr(Room, "_device_limit", lambda self, device: 0)
            label = predict_label(
                [model.cuda()], [image], geometry, patch_size=(8, 8, 8), regions=None, mirror_axes=(0, 1),
                device="cuda", max_memory=limit,
            )  # fmt: skip
        agree = float((label == predict_label([model.cpu()], [image], geometry, patch_size=(8, 8, 8), regions=None,
                                              mirror_axes=(0, 1))).mean())  # fmt: skip
        assert agree > 0.999
    assert logits.device == CPU
