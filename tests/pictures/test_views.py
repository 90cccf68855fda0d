from __future__ import annotations

import numpy as np
import pytest

from medtrain.pictures.views import AXIAL, CORONAL, SAGITTAL, field_of_view, find_focus, window_of


def _valid(label: np.ndarray) -> np.ndarray:
    return np.ones(label.shape, bool)


def test_planes_are_oriented_as_radiologists_expect() -> None:
    # D inferior -> superior, H posterior -> anterior, W left -> right: mark the superior, anterior, right corner
    volume = np.zeros((2, 3, 4))
    volume[1, 2, 3] = 1
    axial = AXIAL.show(volume[1])  # [H, W]
    assert axial.shape == (3, 4)
    assert axial[0, 0] == 1  # anterior at the top, right on the left
    assert (AXIAL.letters[0], AXIAL.letters[3]) == ("A", "R")
    coronal = CORONAL.show(volume[:, 2])  # [D, W]
    assert coronal[0, 0] == 1  # superior at the top, right on the left
    assert (CORONAL.letters[0], CORONAL.letters[3]) == ("S", "R")
    sagittal = SAGITTAL.show(volume[:, :, 3])  # [D, H]
    assert sagittal[0, 0] == 1  # superior at the top, anterior on the left
    assert (SAGITTAL.letters[0], SAGITTAL.letters[3]) == ("S", "A")


@pytest.mark.parametrize(("plane", "expected"), [(AXIAL, (2.0, 3.0)), (CORONAL, (1.0, 3.0)), (SAGITTAL, (1.0, 2.0))])
def test_aspect_is_the_spacing_of_rows_and_columns(plane: object, expected: tuple[float, float]) -> None:
    assert plane.aspect((1.0, 2.0, 3.0)) == expected  # type: ignore[attr-defined]


def test_focus_is_in_the_densest_errors(rng: np.random.Generator) -> None:
    label = np.zeros((100, 90, 80), np.uint8)
    label[10:70, 10:70, 10:70] = 1
    prediction = label.copy()
    prediction[20:32, 40:52, 50:62] = 0  # a block of missed voxels around (26, 46, 56)
    scattered = tuple(rng.integers(0, n, 200) for n in label.shape)
    prediction[scattered] = 1 - prediction[scattered]
    focus = find_focus(label, prediction, _valid(label))
    assert np.abs(np.subtract(focus, (26, 46, 56))).max() <= 4
    assert label[focus] != prediction[focus]


def test_a_missed_lesion_counts_for_more_than_the_rim_of_its_organ() -> None:
    label = np.zeros((64, 64, 64), np.uint8)
    label[4:60, 4:60, 4:60] = 1
    label[40:44, 40:44, 40:44] = 2
    prediction = np.zeros_like(label)
    prediction[7:60, 4:60, 4:60] = 1  # a slab of the organ is missed as well
    focus = find_focus(label, prediction, _valid(label))
    assert label[focus] == 2


def test_focus_without_errors_and_without_anything() -> None:
    label = np.zeros((8, 8, 8), np.uint8)
    assert find_focus(label, label, _valid(label)) == (4, 4, 4)
    label[2:5, 1:4, 5:8] = 1
    assert find_focus(label, label, _valid(label)) == (3, 2, 6)


def test_focus_leaves_unannotated_voxels_out() -> None:
    label = np.zeros((8, 8, 8), np.uint8)
    label[:4] = 2  # 2 classes: an ignored half
    prediction = np.zeros_like(label)
    prediction[1] = 1
    prediction[6, 5, 4] = 1
    assert find_focus(label, prediction, label < 2) == (6, 5, 4)


def test_field_of_view_has_a_margin_in_mm() -> None:
    mask = np.zeros((20, 100, 100), bool)
    mask[8:12, 30:50, 95:100] = True
    box = field_of_view(mask, (5.0, 1.0, 1.0))
    # D: 4 voxels = 20 mm, widened to 40 mm: 2 on each side; H: 20 mm, likewise 10; W: 5 mm: 17.5 -> 18, cut at the edge
    assert box == (slice(6, 14), slice(20, 60), slice(77, 100))


def test_field_of_view_is_whole_when_little_would_be_cut_or_nothing_is_there() -> None:
    mask = np.zeros((10, 10, 10), bool)
    assert field_of_view(mask, (1.0, 1.0, 1.0)) == (slice(0, 10),) * 3
    mask[5, 5, 5] = True
    assert field_of_view(mask, (1.0, 1.0, 1.0)) == (slice(0, 10),) * 3


def test_window_is_the_percentiles_of_what_is_not_padding() -> None:
    image = np.zeros(2000)
    image[1000:] = np.arange(1, 1001)
    low, high = window_of(image)
    assert (low, high) == (pytest.approx(np.percentile(np.arange(1, 1001), 1)), pytest.approx(990.01))
    assert window_of(np.full(10, 3.0)) == (3.0, 4.0)
    assert window_of(np.array([np.nan, np.nan])) == (0.0, 1.0)
    image[5] = np.inf
    assert np.isfinite(window_of(image)).all()
