"""Rotation, scaling, mirroring: analytic transforms, exact cases, what must be read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor

from medtrain.data.transforms import cpu
from medtrain.data.transforms.resample import Resampler, slabs
from medtrain.data.transforms.spatial import place, read_size, rotation_matrix


def _centre(volume: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    cut = tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(volume.shape[-len(size) :], size))
    return np.ascontiguousarray(volume[(..., *cut)])


def _sample(volume: np.ndarray, label: np.ndarray, params: dict[str, Any]) -> dict[str, Any]:
    """A batch of one sample read around the centre of a volume [C, *V] and its label [*V]."""
    size = params["read_size"]
    return {
        "image": [torch.from_numpy(_centre(volume, size))],
        "label": [torch.from_numpy(_centre(label, size))],
        "params": [params],
    }


def _place(
    volume: np.ndarray, label: np.ndarray, params: dict[str, Any], patch_size: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    image, labels = place(_sample(volume, label, params), patch_size=patch_size, label_pad=0)
    return image[0], labels[0]


def _params(matrix: np.ndarray, patch_size: tuple[int, ...], **others: Any) -> dict[str, Any]:
    return {"matrix": matrix, "read_size": read_size(matrix, patch_size), **others}


def _points(matrix: np.ndarray, patch_size: tuple[int, ...], volume_size: tuple[int, ...]) -> np.ndarray:
    """Coordinates in a volume that shares its centre with the patch, [dims, *P]."""
    offsets = np.stack(np.meshgrid(*[np.arange(p) - (p - 1) / 2 for p in patch_size], indexing="ij"))
    middle = (np.array(volume_size) - 1) / 2
    return np.tensordot(matrix, offsets, axes=1) + middle.reshape(-1, *[1] * len(patch_size))


def _random_matrix(rng: np.random.Generator, dims: int, limit: float = math.pi) -> np.ndarray:
    return rotation_matrix(rng.uniform(-limit, limit, 3 if dims == 3 else 1).tolist()) * rng.uniform(0.7, 1.4)


def _blobs(shape: tuple[int, ...], classes: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = np.stack([scipy.ndimage.gaussian_filter(rng.standard_normal(shape), 2.5) for _ in range(classes)])
    return smooth.argmax(0).astype(np.uint8)


def test_rotation_matrix_is_a_rotation_about_d_then_h_then_w() -> None:
    matrix = rotation_matrix([0.3, -0.4, 0.5])
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-15)
    assert np.linalg.det(matrix) == pytest.approx(1.0)
    np.testing.assert_allclose(rotation_matrix([0.3, 0, 0]) @ [1, 0, 0], [1, 0, 0])
    np.testing.assert_allclose(rotation_matrix([0, 0.3, 0]) @ [0, 1, 0], [0, 1, 0])
    by_hand = rotation_matrix([0, 0, 0.5]) @ rotation_matrix([0, -0.4, 0]) @ rotation_matrix([0.3, 0, 0])
    np.testing.assert_allclose(matrix, by_hand)
    np.testing.assert_allclose(rotation_matrix([math.pi / 2]) @ [1, 0], [0, 1], atol=1e-15)


@pytest.mark.parametrize("patch_size", [(6, 9, 8), (7, 10)])
def test_a_linear_ramp_is_transformed_analytically(patch_size: tuple[int, ...]) -> None:
    dims = len(patch_size)
    matrix = _random_matrix(np.random.default_rng(1), dims)
    size = (30,) * dims
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"))
    slopes = np.array([0.5, -1.25, 2.0])[:dims]
    volume = np.tensordot(slopes, grid, axes=1)[None].astype(np.float32)
    image, _ = _place(volume, np.zeros(size, np.uint8), _params(matrix, patch_size), patch_size)
    expected = np.tensordot(slopes, _points(matrix, patch_size, _centre(volume, _even(size, patch_size)).shape[1:]), 1)
    shift = (np.array(size) - np.array(_even(size, patch_size))) // 2
    np.testing.assert_allclose(image[0].numpy(), expected + slopes @ shift, atol=2e-5)


def _even(size: tuple[int, ...], patch_size: tuple[int, ...]) -> tuple[int, ...]:
    """The largest centred box in `size` with the parity of the patch."""
    return tuple(n - (n - p) % 2 for n, p in zip(size, patch_size))


@pytest.mark.parametrize("patch_size", [(8, 11, 10), (12, 9), (5, 12, 12)])
def test_read_size_suffices_and_equals_sampling_the_whole_volume(patch_size: tuple[int, ...]) -> None:
    dims = len(patch_size)
    rng = np.random.default_rng(2)
    size = tuple(p + 2 * (36 - p // 2) for p in patch_size)  # larger than any read, of the patch's parity
    volume = rng.standard_normal((2, *size)).astype(np.float32)
    label = _blobs(size, 4)
    for _ in range(15):
        matrix = _random_matrix(rng, dims)
        params = _params(matrix, patch_size)
        image, labels = _place(volume, label, params, patch_size)
        points = _points(matrix, patch_size, size)
        for channel in range(2):
            expected = scipy.ndimage.map_coordinates(volume[channel], points, order=1)
            np.testing.assert_allclose(image[channel].numpy(), expected, atol=1e-4)
        weights = np.stack(
            [scipy.ndimage.map_coordinates((label == k).astype(np.float64), points, order=1) for k in range(4)]
        )
        top = np.sort(weights, axis=0)
        clear = top[-1] - top[-2] > 1e-4
        assert clear.mean() > 0.9
        assert np.array_equal(labels.numpy()[clear], weights.argmax(0)[clear])


@pytest.mark.parametrize("patch_size", [(20, 28, 20), (16, 64, 64), (1, 24, 30), (40, 56), (1, 9)])
def test_read_size_is_the_smallest_box(patch_size: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        matrix = _random_matrix(rng, len(patch_size), limit=0.6)
        size = read_size(matrix, patch_size)
        corners = np.abs(matrix) @ ((np.array(patch_size) - 1) / 2)
        for k, (read, patch) in enumerate(zip(size, patch_size)):
            assert read >= patch
            assert (read - patch) % 2 == 0
            assert corners[k] <= (read - 1) / 2 + 1e-9
            assert read <= max(patch, 3) or corners[k] > (read - 3) / 2  # two voxels fewer would not do


def test_read_size_by_hand() -> None:
    assert read_size(np.eye(3), (5, 6, 7)) == (5, 6, 7)
    assert read_size(2.0 * np.eye(2), (4, 5)) == (8, 9)  # points +-3 and +-4 around the centre
    assert read_size(0.7 * np.eye(2), (40, 41)) == (40, 41)
    assert read_size(rotation_matrix([math.pi / 2]), (4, 10)) == (10, 10)
    assert read_size(rotation_matrix([math.pi / 4]), (11, 11)) == (17, 17)  # half diagonal 7.07


@pytest.mark.parametrize(("axis", "plane"), [(0, (1, 2)), (1, (2, 0)), (2, (0, 1))])
def test_rotation_by_90_degrees_is_rot90(axis: int, plane: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    size = (12, 12, 12)
    volume = rng.standard_normal((2, *size)).astype(np.float32)
    label = rng.integers(0, 5, size).astype(np.int16)
    angles = [math.pi / 2 if k == axis else 0.0 for k in range(3)]
    image, labels = _place(volume, label, _params(rotation_matrix(angles), size), size)
    # Patch point (a, b) shows read point (-b, a): torch.rot90 from b to a.
    a, b = plane
    assert torch.equal(image, torch.rot90(torch.from_numpy(volume), 1, [b + 1, a + 1]))
    assert torch.equal(labels, torch.rot90(torch.from_numpy(label), 1, [b, a]))


def test_rotation_by_90_degrees_in_2d_swaps_the_sides_of_what_is_read() -> None:
    volume = np.arange(40, dtype=np.float32).reshape(1, 4, 10)
    params = _params(rotation_matrix([math.pi / 2]), (10, 4))
    assert params["read_size"] == (10, 10)
    padded = np.pad(volume, ((0, 0), (3, 3), (0, 0)))
    image, _ = _place(padded, padded[0].astype(np.uint8), params, (10, 4))
    assert torch.equal(image, torch.rot90(torch.from_numpy(volume), 1, [2, 1]))


def test_scale_2_in_plane_averages_pairs() -> None:
    rng = np.random.default_rng(5)
    volume = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
    params = _params(np.diag([1.0, 2.0, 2.0]), (3, 4, 4))
    assert params["read_size"] == (3, 8, 8)
    image, _ = _place(volume, np.zeros((3, 8, 8), np.uint8), params, (3, 4, 4))
    torch.testing.assert_close(image, F.avg_pool2d(torch.from_numpy(volume), 2))


def test_scale_2_keeps_single_voxels_of_odd_patches() -> None:
    volume = np.arange(81, dtype=np.float32).reshape(1, 9, 9)
    image, label = _place(volume, volume[0].astype(np.int16), _params(2.0 * np.eye(2), (5, 5)), (5, 5))
    assert torch.equal(image, torch.from_numpy(volume)[:, ::2, ::2])
    assert torch.equal(label, torch.from_numpy(volume)[0, ::2, ::2].to(torch.int16))


@pytest.mark.parametrize("axes", [(0,), (2,), (0, 1), (0, 1, 2)])
def test_mirroring_is_exact_with_and_without_resampling(axes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    patch_size = (6, 7, 8)
    volume = rng.standard_normal((2, 20, 21, 20)).astype(np.float32)
    label = _blobs((20, 21, 20), 3)
    for params in ({"read_size": patch_size}, _params(_random_matrix(rng, 3, 0.5), patch_size)):
        image, labels = _place(volume, label, params, patch_size)
        mirrored, mirrored_labels = _place(volume, label, {**params, "mirror": axes}, patch_size)
        if "matrix" in params:
            torch.testing.assert_close(mirrored, image.flip([axis + 1 for axis in axes]), atol=2e-5, rtol=0)
            assert (mirrored_labels != labels.flip(axes)).sum() <= 1
        else:
            assert torch.equal(mirrored, image.flip([axis + 1 for axis in axes]))
            assert torch.equal(mirrored_labels, labels.flip(axes))


@pytest.mark.parametrize("patch_size", [(6, 7, 8), (9, 6)])
def test_identity_is_the_centre_crop(patch_size: tuple[int, ...]) -> None:
    rng = np.random.default_rng(7)
    size = tuple(p + 4 for p in patch_size)
    volume = rng.standard_normal((2, *size)).astype(np.float32)
    label = rng.integers(0, 4, size).astype(np.uint8)
    batch = {"image": [torch.from_numpy(volume)] * 2, "label": [torch.from_numpy(label)] * 2}
    batch["params"] = [{"read_size": size}, {"read_size": size, "matrix": np.eye(len(size))}]
    image, labels = place(batch, patch_size=patch_size, label_pad=0)
    for i in range(2):
        assert torch.equal(image[i], torch.from_numpy(_centre(volume, patch_size)))
        assert torch.equal(labels[i], torch.from_numpy(_centre(label, patch_size)))


def test_reads_that_are_too_small_are_padded() -> None:
    batch = {"image": [torch.ones(1, 2, 3)], "label": [torch.ones(2, 3, dtype=torch.uint8)], "params": [{}]}
    image, label = place(batch, patch_size=(4, 4), label_pad=9)
    assert image[0, 0].tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert label[0].tolist() == [[9, 9, 9, 9], [1, 1, 1, 9], [1, 1, 1, 9], [9, 9, 9, 9]]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_group_equals_its_members(dims: int) -> None:
    rng = np.random.default_rng(8)
    patch_size = (10, 12, 9)[:dims]
    # The first two turn all axes, the third leaves D alone: its weights there are exactly 0.
    matrices = [_random_matrix(rng, dims), _random_matrix(rng, dims), np.diag([-1.0, 1.2, 1.2][:dims])]
    images, labels = [], []
    for matrix in matrices:
        size = read_size(matrix, patch_size)
        size = tuple(max(n, 2) for n in size)
        images.append(torch.from_numpy(rng.standard_normal((3, *size)).astype(np.float32)))
        labels.append(torch.from_numpy(_blobs(size, 5)))
    together, labels_together = Resampler(images, labels, matrices, patch_size).rows(0, patch_size[0])
    for i, matrix in enumerate(matrices):
        alone, labels_alone = Resampler(images[i : i + 1], labels[i : i + 1], [matrix], patch_size).rows(
            0, patch_size[0]
        )
        torch.testing.assert_close(together[i], alone[0], atol=5e-6, rtol=0)
        assert torch.equal(labels_together[i], labels_alone[0])


def _on_a_cpu(image: Tensor, label: Tensor, matrix: np.ndarray, patch_size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    patch, patch_label = torch.empty(len(image), *patch_size), torch.empty(patch_size, dtype=label.dtype)
    cpu.resample_read(image, label, matrix, patch, patch_label)
    return patch, patch_label


@pytest.mark.parametrize("patch_size", [(9, 12, 10), (12, 9), (1, 8, 7)])
@pytest.mark.parametrize("kind", ["turned", "scaled", "flat", "still"])
def test_a_cpu_agrees_with_the_group(patch_size: tuple[int, ...], kind: str) -> None:
    rng = np.random.default_rng(9)
    dims = len(patch_size)
    for classes, dtype in ((6, torch.uint8), (2, torch.int16), (12, torch.uint8)):
        matrix = _random_matrix(rng, dims) if kind == "turned" else np.diag(rng.uniform(0.7, 1.4, dims))
        if kind == "flat":  # nothing happens along the first axis but mirroring
            matrix[0], matrix[:, 0], matrix[0, 0] = 0, 0, -1
        if kind == "still":
            matrix = np.diag([-1.0, 1.0, -1.0][:dims])
        size = tuple(max(n, 3) for n in read_size(matrix, patch_size))
        size = tuple(n + (n - p) % 2 for n, p in zip(size, patch_size))
        image = torch.from_numpy(rng.standard_normal((2, *size)).astype(np.float32))
        label = torch.from_numpy(_blobs(size, classes)).to(dtype)
        together, labels_together = Resampler([image], [label], [matrix], patch_size).rows(0, patch_size[0])
        alone, label_alone = _on_a_cpu(image, label, matrix, patch_size)
        torch.testing.assert_close(alone, together[0], atol=2e-5, rtol=0)
        assert torch.equal(label_alone, labels_together[0])


def test_of_equal_weights_the_smallest_class_wins_on_a_cpu() -> None:
    label = torch.tensor([[3, 1], [2, 2]], dtype=torch.uint8)
    for half, expected in ((label, 2), (label.flip(1), 2), (torch.tensor([[3, 1], [0, 4]], dtype=torch.uint8), 0)):
        _, patch = _on_a_cpu(half[None].float(), half, np.diag([0.5, 0.5]), (1, 1))
        assert patch.item() == expected  # the middle of four voxels


def test_slabs_cover_the_patch_and_do_not_change_it() -> None:
    assert slabs((10, 4, 4), voxels=48) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert slabs((3, 100, 100), voxels=10) == [(0, 1), (1, 2), (2, 3)]
    rng = np.random.default_rng(10)
    matrix = _random_matrix(rng, 3)
    size = read_size(matrix, (9, 8, 7))
    image = torch.from_numpy(rng.standard_normal((2, *size)).astype(np.float32))
    label = torch.from_numpy(_blobs(size, 3))
    resampler = Resampler([image], [label], [matrix], (9, 8, 7))
    whole, whole_label = resampler.rows(0, 9)
    parts = [resampler.rows(start, stop) for start, stop in ((0, 4), (4, 8), (8, 9))]
    torch.testing.assert_close(torch.cat([part for part, _ in parts], dim=2), whole, atol=5e-6, rtol=0)
    assert torch.equal(torch.cat([part for _, part in parts], dim=1), whole_label)


def test_a_patch_larger_than_a_slab_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(11)
    patch_size = (9, 8, 7)
    volume = rng.standard_normal((2, 25, 24, 25)).astype(np.float32)
    params = _params(_random_matrix(rng, 3), patch_size)
    image, label = _place(volume, _blobs((25, 24, 25), 3), params, patch_size)
    monkeypatch.setattr(cpu, "_SLAB_VOXELS", 120)  # slabs of two rows
    image_in_slabs, label_in_slabs = _place(volume, _blobs((25, 24, 25), 3), params, patch_size)
    torch.testing.assert_close(image_in_slabs, image, atol=5e-6, rtol=0)
    assert torch.equal(label_in_slabs, label)


def test_large_reads_are_indexed_exactly() -> None:
    # 260^3 = 1.8e7 voxels: more than float32 can count.
    label = torch.zeros(260, 260, 260, dtype=torch.uint8)
    label[259, 259, 258:] = torch.tensor([3, 4], dtype=torch.uint8)
    image = torch.zeros(1, 1, 1, 1).expand(1, 260, 260, 260)
    resampler = Resampler([image], [label], [np.eye(3)], (260, 260, 260))
    _, rows = resampler.rows(259, 260)
    assert rows[0, 0, 259, 257:].tolist() == [0, 3, 4]
