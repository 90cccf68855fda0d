"""Tiles of cases: the label where it belongs, the flags where they are read."""

from __future__ import annotations

import numpy as np

from medtrain.pictures.colors import class_color
from medtrain.pictures.contact import caption, draw_page, draw_tile
from medtrain.pictures.thumbnails import WRONG

SIZE = 60


def tile(label: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), classes: int = 3) -> np.ndarray:
    image = np.linspace(0, 100, label.size, dtype=np.float32).reshape(label.shape)
    return draw_tile(image, label, spacing, num_classes=classes, size=SIZE)


def colored(pixels: np.ndarray, index: int) -> np.ndarray:
    return (pixels == class_color(index)).all(axis=-1)


def panel(pixels: np.ndarray, index: int) -> np.ndarray:
    return pixels[:, index * (SIZE + 2) : index * (SIZE + 2) + SIZE]


def test_the_outline_lies_where_the_label_does() -> None:
    label = np.zeros((60, 60, 60), np.uint8)
    label[20:40, 10:20, 5:25] = 1
    pixels = tile(label)
    assert pixels.shape == (SIZE, 4 * SIZE + 6, 3)
    # axial: rows are H from anterior, columns W from right to left: 60 - 20 .. 60 - 10 and 60 - 25 .. 60 - 5
    rows, columns = np.nonzero(colored(panel(pixels, 0), 1))
    edges = np.array([rows.min(), rows.max(), columns.min(), columns.max()])
    assert (np.abs(edges - [40, 49, 35, 54]) <= 1).all()  # an outline has two sides
    rows, columns = np.nonzero(colored(panel(pixels, 1), 1))  # coronal: rows are D from superior
    assert 19 <= rows.min() <= 20 <= 39 <= rows.max() <= 40
    assert not colored(panel(pixels, 3), 1).any()  # the scan alone


def test_planes_go_through_the_label_and_pixels_are_square_in_mm() -> None:
    label = np.zeros((10, 40, 40), np.uint8)
    label[8, 30, 30] = 2
    pixels = tile(label, (4.0, 1.0, 1.0))
    assert all(colored(panel(pixels, index), 2).any() for index in range(3))
    label = np.zeros((10, 40, 40), np.uint8)
    coronal = panel(tile(label, (2.0, 1.0, 1.0)), 1)
    assert np.flatnonzero((coronal != (24, 24, 26)).any(axis=(1, 2))).size == 30  # 20 mm of 40 in 60 pixels


def test_cases_without_a_label_or_with_ignored_voxels_are_drawn() -> None:
    assert tile(np.zeros((4, 5, 6), np.uint8)).shape == (SIZE, 4 * SIZE + 6, 3)
    assert tile(np.full((4, 5, 6), 3, np.uint8)).shape == (SIZE, 4 * SIZE + 6, 3)
    assert tile(np.ones((1, 50, 60), np.uint8)).shape == (SIZE, 4 * SIZE + 6, 3)


def test_large_volumes_are_looked_at_sparsely() -> None:
    label = np.zeros((300, 20, 20), np.uint8)
    label[250:280, 5:15, 5:15] = 1
    assert colored(panel(tile(label), 0), 1).any()


def test_flags_are_framed_and_written() -> None:
    plain = np.zeros((20, 200, 3), np.uint8)
    without = caption(plain, "case_1", "10 x 20", [])
    flagged = caption(plain, "case_1", "10 x 20", ["one", "two", "three"])
    assert without.shape == flagged.shape
    assert (flagged[0, :200] == WRONG).all()
    assert not (without[:20] == WRONG).all(axis=-1).any()
    assert not plain.any()  # the tile itself is left alone


def test_a_page_is_filled_row_by_row() -> None:
    tiles = [np.full((30, 100, 3), 50 + index, np.uint8) for index in range(3)]
    page = draw_page("title", tiles, ["background", "liver"], columns=2)
    counts = [(page == 50 + index).all(axis=-1).sum() for index in range(3)]
    assert counts == [3000, 3000, 3000]
    left = [np.argwhere((page == 50 + index).all(axis=-1))[0] for index in range(3)]
    assert left[0][0] == left[1][0] < left[2][0]
    assert left[0][1] == left[2][1] < left[1][1]
